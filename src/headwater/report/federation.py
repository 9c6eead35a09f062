"""What the sections on federated learning, personalization and privacy show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from headwater.records import ClientRow, Metrics, Spread, StageRecord
from headwater.report import formatting as fmt
from headwater.report.charts import Series, change_chart, distribution_chart, line_chart, stacked_bars
from headwater.report.collect import distinct_labels
from headwater.statistics import over_clients, paired_bootstrap, verdict

_NAMED = 8
"""Clients that are named beside a reason for failing."""
CONTROLS = {"alone": "Each client alone", "central": "All rows in one place"}


def federated_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return what the section on federations shows, or None without one."""
    federations = [record for record in records if record.rounds]
    if not federations:
        return None
    labels = distinct_labels(federations)
    series = [
        Series(
            label,
            [row.round for row in record.rounds],
            [row.metrics.get("accuracy", np.nan) for row in record.rounds],
        )
        for label, record in zip(labels, federations, strict=True)
    ]
    groups = client_groups(labels, federations)
    controls = controls_of(federations)
    levels = [(name, figures["accuracy"]) for name, figures in controls if "accuracy" in figures]
    curves = line_chart(
        series,
        title="Accuracy by round",
        x_label="round",
        show=fmt.percent,
        show_tick=fmt.percent_tick,
        levels=levels,
        height=330.0,
    )
    return {
        "lines": [federation_line(label, record) for label, record in zip(labels, federations, strict=True)],
        "controls": controls,
        "private": any(record.privacy for record in federations),
        "curves": curves,
        "clients": distribution_chart(
            groups, title="Accuracy of each client", axis="accuracy on the client's own test rows"
        ),
        "fairness": summaries(groups),
        "spreads": spread_charts(labels, federations),
        "sent": sent_chart(labels, federations),
        "timed": time_chart(labels, federations) if any(row.time for r in federations for row in r.rounds) else "",
        "buffered": any(row.staleness is not None for record in federations for row in record.rounds),
        "losses": [loss_chart(label, record) for label, record in zip(labels, federations, strict=True)],
        "failures": failures(labels, federations),
    }


def federation_line(label: str, record: StageRecord) -> dict[str, Any]:
    """Return one federation's line of the table."""
    figures = record.metrics.get("test") or record.metrics.get("valid") or record.rounds[-1].metrics
    stale = [row.staleness for row in record.rounds if row.staleness is not None]
    return {
        "label": label,
        "name": record.name,
        "accuracy": figures.get("accuracy"),
        "macro_f1": figures.get("macro_f1"),
        "rounds": len(record.rounds),
        "stopped": record.stopped,
        "down": sum(row.bytes_down for row in record.rounds),
        "up": sum(row.bytes_up for row in record.rounds),
        "time": record.rounds[-1].time,
        "staleness": float(np.mean(stale)) if stale else None,
        "privacy": record.privacy,
    }


def sent_chart(labels: Sequence[str], records: Sequence[StageRecord]) -> Markup:
    """Draw the accuracy by what the clients have sent until then."""
    sent = [np.cumsum([row.bytes_up for row in record.rounds]) / 2**20 for record in records]
    return accuracy_chart(labels, records, sent, "Accuracy by what was sent", "MiB up")


def time_chart(labels: Sequence[str], records: Sequence[StageRecord]) -> Markup:
    """Draw the accuracy by the simulated time that has passed."""
    times = [np.array([row.time for row in record.rounds]) for record in records]
    return accuracy_chart(labels, records, times, "Accuracy by simulated time", "times of the median client")


def accuracy_chart(
    labels: Sequence[str], records: Sequence[StageRecord], spent: Sequence[np.ndarray], title: str, x_label: str
) -> Markup:
    """Draw the accuracy of the rounds that were measured by what has been spent until each."""
    series = []
    for label, record, spent_R in zip(labels, records, spent, strict=True):
        points = [(x, row.metrics["accuracy"]) for x, row in zip(spent_R, record.rounds, strict=True) if row.metrics]
        series.append(Series(label, [x for x, _ in points], [y for _, y in points]))
    return line_chart(series, title=title, x_label=x_label, show=fmt.percent, show_tick=fmt.percent_tick)


def loss_chart(label: str, record: StageRecord) -> Markup:
    """Draw how the clients' training losses are spread in each round."""
    rounds = [row for row in record.rounds if row.losses]
    numbers = [float(row.round) for row in rounds]
    series = [
        Series(name, numbers, [row.losses[place] for row in rounds])
        for place, name in enumerate(("least", "lower quartile", "median", "upper quartile", "largest"))
    ]
    return line_chart(series if rounds else [], title=f"Clients' training losses, {label}", x_label="round")


def failures(labels: Sequence[str], records: Sequence[StageRecord]) -> list[dict[str, Any]]:
    """Return which clients' updates were not taken in, and why: a line for each federation and reason."""
    lines = []
    for label, record in zip(labels, records, strict=True):
        found: dict[str, Counter[str]] = {}
        for row in record.rounds:
            for client, why in row.failed.items():
                kind = why.partition(":")[0]  # what stands behind it may be the client's own figure
                found.setdefault(kind, Counter())[client] += 1
        for why, clients in sorted(found.items(), key=lambda item: -item[1].total()):
            named = ", ".join(f"{client} ({times})" for client, times in clients.most_common(_NAMED))
            more = f", and {len(clients) - _NAMED} more" if len(clients) > _NAMED else ""
            lines.append({"label": label, "why": why, "times": clients.total(), "clients": named + more})
    return lines


def controls_of(records: Sequence[StageRecord]) -> list[tuple[str, Metrics]]:
    """Return the distinct controls; one that differs between federations names its federation."""
    found: dict[str, list[tuple[str, Metrics]]] = {}
    for record in records:
        for name, figures in record.controls.items():
            known = found.setdefault(name, [])
            if figures not in [other for _, other in known]:
                known.append((record.name, figures))
    return [
        (CONTROLS.get(name, name.replace("_", " ")) + (f", {stage}" if len(some) > 1 else ""), figures)
        for name, some in found.items()
        for stage, figures in some
    ]


Group = tuple[str, list[tuple[str, float]]]
"""A name, and each client's accuracy."""


def client_groups(labels: Sequence[str], records: Sequence[StageRecord]) -> list[Group]:
    """Return the accuracy of every client under each federation, by its own model where it has one, and alone."""
    groups = [
        (
            label,
            [
                (row.client, row.metrics.get("accuracy_after", row.metrics["accuracy"]))
                for row in record.clients
                if "accuracy" in row.metrics
            ],
        )
        for label, record in zip(labels, records, strict=True)
    ]
    alone = alone_of(records)
    return [group for group in (*groups, ("each client alone", alone)) if group[1]]


def summaries(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the lines of the table over clients."""
    return [{"label": label, **over_clients([value for _, value in rows])} for label, rows in groups]


def spread_charts(labels: Sequence[str], records: Sequence[StageRecord]) -> list[Markup]:
    """Draw how the rows lie over the clients, once where federations have the same ones."""
    found: list[tuple[str, Spread]] = []
    for label, record in zip(labels, records, strict=True):
        if record.spread and record.spread not in [spread for _, spread in found]:
            found.append((label, record.spread))
    drawn = []
    for name, spread in found:
        of = f", {name}" if len(found) > 1 else ""
        sizes = [[count / group.clients for count in group.labels or [group.rows]] for group in spread.groups]
        clients = [group.clients for group in spread.groups]
        title = f"Training rows of a client{of}"
        drawn.append(stacked_bars(sizes, spread.labels or ["rows"], clients=clients, title=title))
        lengths = [[group.length] for group in spread.groups]
        title = f"Mean length of a client's rows, {spread.length_unit}{of}"
        drawn.append(stacked_bars(lengths, ["mean length"], clients=clients, title=title))
    return drawn


def alone_of(records: Sequence[StageRecord]) -> list[tuple[str, float]]:
    """Return what each client reaches by itself, from the first federation that measured it."""
    for record in records:
        rows = [
            (row.client, row.metrics["accuracy_alone"]) for row in record.clients if "accuracy_alone" in row.metrics
        ]
        if rows:
            return rows
    return []


def privacy_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return what the section on privacy shows, or None where nothing was spent."""
    private = [record for record in records if record.privacy]
    if not private:
        return None
    labels = distinct_labels(private)
    series = [
        Series(
            label,
            [row.round for row in record.rounds if row.epsilon is not None],
            [row.epsilon for row in record.rounds if row.epsilon is not None],
        )
        for label, record in zip(labels, private, strict=True)
    ]
    chart = line_chart(series, title="Privacy spent, ε", x_label="round")
    lines = [{"name": label, "privacy": record.privacy} for label, record in zip(labels, private, strict=True)]
    return {"lines": lines, "chart": chart}


def personal_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return what the section on personalization shows, or None where no client has a before and after."""
    stages = [facts for record in records if (facts := personal_stage(record))]
    return {"stages": stages} if stages else None


def personal_stage(record: StageRecord) -> dict[str, Any] | None:
    """Return one personalization: each client before and after."""
    clients = [row for row in record.clients if {"accuracy_before", "accuracy_after"} <= row.metrics.keys()]
    if not clients:
        return None
    before = [row.metrics["accuracy_before"] for row in clients]
    after = [row.metrics["accuracy_after"] for row in clients]
    interval = paired_bootstrap(after, before)
    names = [row.client for row in clients]
    shared = [(row.client, row.metrics["accuracy"]) for row in clients if "accuracy" in row.metrics]
    groups = [
        ("before", list(zip(names, before, strict=True))),
        *([("the shared model", shared)] if shared else []),
        ("after", list(zip(names, after, strict=True))),
    ]
    alone = alone_of([record])
    if alone:
        groups.append(("each client alone", alone))
    return {
        "name": record.name,
        "method": record.method,
        "lines": summaries(groups),
        "interval": interval,
        "verdict": verdict(interval),
        "gained": sum(b > a for a, b in zip(before, after, strict=True)),
        "lost": sum(b < a for a, b in zip(before, after, strict=True)),
        "same": sum(b == a for a, b in zip(before, after, strict=True)),
        "clients": [client_line(row) for row in sorted(clients, key=lambda row: row.client)],
        "distribution": distribution_chart(
            groups, title="Accuracy of each client", axis="accuracy on the client's own test rows"
        ),
        "change": change_chart(
            list(zip(names, before, after, strict=True)),
            title="After over before",
            note="One dot a client; larger where several coincide. Above the diagonal, a client gained.",
        ),
    }


def client_line(row: ClientRow) -> dict[str, Any]:
    """Return one client's line of the table."""
    before, after = row.metrics["accuracy_before"], row.metrics["accuracy_after"]
    return {
        "client": row.client,
        "train_rows": row.train_rows,
        "test_rows": row.test_rows,
        "before": before,
        "after": after,
        "change": after - before,
    }
