"""The top of the report: what happened, and how good it is beside what must be beaten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from headwater.records import StageRecord
from headwater.report import formatting as fmt
from headwater.report.collect import accuracy, ancestors, measured, same_test, trained_on, with_verb
from headwater.report.device import final_artifact, shrink, total
from headwater.report.transfer import groups_of
from headwater.statistics import mean_and_spread

NOUNS = {
    "pretrain": ("pre-training", "pre-trainings"),
    "import": ("import", "imports"),
    "transfer": ("transfer run", "transfer runs"),
    "metalearn": ("meta-learning", "meta-learnings"),
    "reshape": ("reshaping", "reshapings"),
    "federate": ("federation", "federations"),
    "personalize": ("personalization", "personalizations"),
    "compress": ("compression", "compressions"),
    "export": ("export", "exports"),
}


def headline_facts(records: Sequence[StageRecord]) -> dict[str, Any]:
    """Return the title, the line under it and the key figures."""
    return {
        "steps": steps(records),
        "counts": counts(records),
        "quality": quality(records),
        "artifact": artifact(records),
        "privacy": privacy(records),
        "verified": verified(records),
    }


def steps(records: Sequence[StageRecord]) -> list[str]:
    """Return source, target and devices, as far as the records name them."""
    sources = [use.path for record in with_verb(records, "pretrain") if (use := trained_on(record))]
    targets = [use.path for record in records if record.verb != "pretrain" and (use := trained_on(record))]
    found = list(dict.fromkeys(map(fmt.data_label, sources)))
    named = [" + ".join(found)] if found else []
    common = Counter(map(fmt.data_label, targets)).most_common(1)
    if common and common[0][0] not in found:
        named.append(common[0][0])
    clients = max((len(record.clients) for record in records), default=0)
    if clients:
        named.append(f"{fmt.count(clients)} client{'s' if clients != 1 else ''}")
    return named or [fmt.verb_label(records[0].verb)]


def counts(records: Sequence[StageRecord]) -> str:
    """Say how many stages of each kind there are."""
    found = Counter(record.verb for record in records)
    return " · ".join(
        f"{fmt.count(number)} {NOUNS.get(verb, (verb, verb))[number > 1]}" for verb, number in found.items()
    )


def test_of(records: Sequence[StageRecord]) -> list[StageRecord]:
    """Return the stages measured on the test rows that most stages share, those of the target if any."""
    scored = [record for record in records if accuracy(record) is not None]
    scored = [record for record in scored if record.verb != "pretrain"] or scored
    if not scored:
        return []
    found = Counter(record.test_fingerprint or record.name for record in scored)
    most = max(found.values())
    reference = next(r for r in reversed(scored) if found[r.test_fingerprint or r.name] == most)
    return [record for record in scored if same_test(record, reference)]


def quality(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return the best accuracy, each group of seeds counting as its mean, beside the trivial baselines."""
    scored = test_of(records)
    if not scored:
        return None
    candidates = [([record], record.name) for record in scored if record.verb != "transfer"]
    for group in groups_of(scored):
        name = f"{group.label}, {fmt.rows_label(group.rows)}" if len(group.runs) > 1 else group.runs[0].name
        candidates.append((list(group.runs), name))
    runs, name = max(candidates, key=lambda item: mean_of(item[0]))
    found = measured(runs[0])
    strongest: dict[str, float] = {}
    for record in scored:
        for key, figures in record.baselines.items():
            if "accuracy" in figures:
                strongest[key] = max(figures["accuracy"], strongest.get(key, 0.0))
    bars = [{"label": "Best model", "value": mean_of(runs), "best": True}]
    bars += [{"label": fmt.baseline_label(key), "value": value, "best": False} for key, value in strongest.items()]
    trivial = max(strongest.values(), default=None)
    return {
        "value": mean_of(runs),
        "name": name,
        "seeds": len(runs),
        "candidates": len(candidates),
        "measured_on": found[0] if found else "test",
        "rows": found[1].get("n") if found else None,
        "bars": sorted(bars, key=lambda bar: -bar["value"]),
        "beats": None if trivial is None else mean_of(runs) > trivial,
    }


def mean_of(runs: Sequence[StageRecord]) -> float:
    """Return the mean accuracy."""
    return mean_and_spread([value for value in map(accuracy, runs) if value is not None])[0]


def artifact(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return the final artifact with its size and accuracy."""
    final = final_artifact(records)
    if final is None:
        return None
    return {
        "record": final,
        "bytes": total(final),
        "ratio": shrink(final, records),
        "accuracy": accuracy(final),
    }


def privacy(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return the privacy spent on the way to the final artifact, or else by a federation beside that way."""
    private = [record for record in records if record.privacy]
    if not private:
        return None
    final = final_artifact(records)
    line = [final, *ancestors(final, records)] if final else []
    inside = [record for record in line if record.privacy]
    record = (inside or private)[0]
    return {"record": record, "privacy": record.privacy, "of_final": bool(inside), "more": len(inside) - 1}


def verified(records: Sequence[StageRecord]) -> StageRecord | None:
    """Return the last stage whose artifact was compared with its model."""
    return next((record for record in reversed(records) if record.verification), None)
