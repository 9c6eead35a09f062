"""Does transfer help? Every method beside training from scratch, on the same rows, seeds and test rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from headwater.records import StageRecord
from headwater.report import formatting as fmt
from headwater.report.charts import Bar, interval_chart
from headwater.report.collect import accuracy, measured, plain, with_verb
from headwater.statistics import GAIN, LOSS, Interval, mean_and_spread, paired_bootstrap, verdict

METHODS = ("scratch", "features", "init", "finetune", "multitask", "lora", "adapters", "prototypes")
SCRATCH = "scratch"
EVERY_RUN_DIFFERS = frozenset(
    {"out", "seed", "resume", "quiet", "device", "threads", "method", "rows", "control", "control_seeds"}
)
"""Options that don't say what was trained, and those that the groups go by."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed."""

    rows: int
    method: str
    variant: str
    runs: tuple[StageRecord, ...]

    @property
    def label(self) -> str:
        """The method, with the options that tell it from another group of the same method."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def accuracies(self) -> tuple[float, ...]:
        """One accuracy a seed."""
        return tuple(value for value in map(accuracy, self.runs) if value is not None)


@dataclass(frozen=True)
class Comparison:
    """A group beside training from scratch."""

    group: Group
    mean: float
    spread: float | None
    macro_f1: float | None
    interval: Interval | None = None
    verdict: str = ""
    reason: str = ""
    """Why there is no interval."""


def rows_of(record: StageRecord) -> int:
    """Return how many rows a run learned from; 0 stands for all."""
    given = record.config.get("rows", 0)
    return int(given) if isinstance(given, int) or str(given).isdecimal() else 0


def groups_of(records: Iterable[StageRecord]) -> list[Group]:
    """Group transfer runs by rows and method, and by the options that differ where seeds occur twice."""
    buckets: dict[tuple[int, str, str, str], list[StageRecord]] = {}
    for record in with_verb(records, "transfer"):
        if accuracy(record) is not None:
            method = str(record.config.get("method") or record.method or "transfer")
            buckets.setdefault((rows_of(record), method, record.test_fingerprint, shape_of(record)), []).append(record)
    groups = [group for (rows, method, *_), runs in buckets.items() for group in split(rows, method, runs)]
    groups = _with_shapes(groups)
    order = {method: index for index, method in enumerate(METHODS)}
    return sorted(groups, key=lambda g: (g.rows or float("inf"), order.get(g.method, len(order)), g.method, g.variant))


def shape_of(record: StageRecord) -> str:
    """Return what the network of a run is like: runs of unlike networks are no seeds of each other."""
    model = record.model
    directions = "two directions" if model.get("bidirectional") else "one direction"
    return f"{model.get('layers')} x {model.get('hidden_size')} units, {directions}, {model.get('cell')}"


def _with_shapes(groups: Sequence[Group]) -> list[Group]:
    """Return the groups, those of networks of several shapes named by theirs."""
    shapes = {shape_of(run) for group in groups for run in group.runs}
    if len(shapes) < 2:
        return list(groups)
    named = [[group.variant, shape_of(group.runs[0])] for group in groups]
    return [replace(group, variant="; ".join(filter(None, name))) for group, name in zip(groups, named, strict=True)]


def split(rows: int, method: str, runs: Sequence[StageRecord]) -> list[Group]:
    """Split runs of one method that can't be told apart by their seeds."""
    if len({run.seed for run in runs}) == len(runs):
        return [Group(rows, method, "", tuple(runs))]
    keys = sorted({key for run in runs for key in run.config} - EVERY_RUN_DIFFERS)
    differing = [key for key in keys if len({plain(run.config.get(key)) for run in runs}) > 1]
    if not differing:  # the same run, made more than once
        return [Group(rows, method, "", tuple({run.seed: run for run in runs}.values()))]
    variants: dict[str, list[StageRecord]] = {}
    for run in runs:
        name = ", ".join(f"{key} = {plain(run.config.get(key))}" for key in differing)
        variants.setdefault(name, []).append(run)
    return [Group(rows, method, name, tuple(some)) for name, some in variants.items()]


def compare(group: Group, groups: Sequence[Group]) -> Comparison:
    """Compare a group with training from scratch on the same rows, seeds and test rows."""
    mean, spread = mean_and_spread(group.accuracies)
    f1 = [found[1]["macro_f1"] for run in group.runs if (found := measured(run)) and "macro_f1" in found[1]]
    make = partial(Comparison, group, mean, spread, float(np.mean(f1)) if f1 else None)
    if group.method == SCRATCH:
        return make(reason="the reference")
    pairs = pairs_of(group, groups)
    own = [run.gain for run in group.runs if run.gain]
    if not pairs and len(own) == len(group.runs) == 1:
        interval = Interval(own[0].mean, own[0].low, own[0].high)
        seeds = f"{own[0].seeds} seed{'s' if own[0].seeds > 1 else ''}"
        return make(interval=interval, verdict=own[0].verdict, reason=f"over its own twin, {seeds}")
    if not pairs and len(own) == len(group.runs):
        return make(reason="what each gained over its own twin stands among the notes")
    if not pairs:
        return make(reason="no scratch run on the same rows, seed and test rows")
    ours, theirs = (np.array([list(map(int, pair[side].correct)) for pair in pairs]) for side in (0, 1))
    interval = paired_bootstrap(ours, theirs)
    fewer = "" if len(pairs) == len(group.runs) else f"over {len(pairs)} of {len(group.runs)} runs"
    return make(interval=interval, verdict=verdict(interval), reason=fewer)


def pairs_of(group: Group, groups: Sequence[Group]) -> list[tuple[StageRecord, StageRecord]]:
    """Pair each run with the scratch run of the same rows, seed, test rows and, if there are any, variant."""
    scratch = [other for other in groups if other.method == SCRATCH and other.rows == group.rows]
    matching = [other for other in scratch if other.variant == group.variant] or scratch
    by_key: dict[tuple[int, str, int, str], list[StageRecord]] = {}
    for run in (run for other in matching for run in other.runs):
        by_key.setdefault((run.seed, run.test_fingerprint, len(run.correct), shape_of(run)), []).append(run)
    pairs = []
    for run in group.runs:
        found = by_key.get((run.seed, run.test_fingerprint, len(run.correct), shape_of(run)), [])
        if run.correct and run.test_fingerprint and len(found) == 1:
            pairs.append((run, found[0]))
    return pairs


def baselines_of(groups: Iterable[Group]) -> dict[str, float]:
    """Return the mean accuracy of each baseline over the runs that give it."""
    found: dict[str, list[float]] = {}
    for run in (run for group in groups for run in group.runs):
        for name, figures in run.baselines.items():
            if "accuracy" in figures:
                found.setdefault(name, []).append(figures["accuracy"])
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def transfer_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return what the section on transfer shows, or None without transfer runs."""
    groups = groups_of(records)
    if not groups:
        return None
    blocks = []
    for rows in dict.fromkeys(group.rows for group in groups):
        here = [group for group in groups if group.rows == rows]
        lines = [compare(group, groups) for group in here]
        blocks.append({"rows": rows, "lines": lines, "baselines": baselines_of(here)})
    runs = [run for group in groups for run in group.runs]
    tested = sorted({len(run.correct) for run in runs if run.correct})
    return {
        "blocks": blocks,
        "tested": tested,
        "sentences": [sentence for block in blocks for sentence in sentences(block)],
        "accuracy_chart": accuracy_chart(blocks) if len(runs) > 1 else "",
        "difference_chart": difference_chart(blocks),
        "held_out": any((found := measured(run)) and found[0] == "valid" for run in runs),
    }


def sentences(block: dict[str, Any]) -> list[dict[str, Any]]:
    """Say in words what each number of rows shows: who gains, who loses, for whom nothing is shown."""
    said = []
    for kind in dict.fromkeys(line.verdict for line in block["lines"] if line.verdict):
        lines = [line for line in block["lines"] if line.verdict == kind]
        who = [f"{line.group.label} {fmt.points(line.interval.mean)}" for line in lines]
        said.append({"rows": block["rows"], "verdict": kind, "who": who})
    return said


def class_of(method: str) -> str:
    """Return the colour class of a method, the same in every chart; scratch is the quiet one."""
    return "same" if method == SCRATCH else f"s{METHODS.index(method) - 1}" if method in METHODS else "s5"


def accuracy_chart(blocks: Sequence[dict[str, Any]]) -> Any:
    """Draw the mean accuracy of each method and baseline."""
    shown = []
    for block in blocks:
        bars = [
            Bar(
                line.group.label,
                line.mean,
                line.mean - line.spread if line.spread is not None else None,
                line.mean + line.spread if line.spread is not None else None,
                runs=line.group.accuracies if len(line.group.runs) > 1 else (),
                class_=class_of(line.group.method),
                tip=f"{line.group.label}, {fmt.rows_label(block['rows'])}: {fmt.percent(line.mean)}",
            )
            for line in block["lines"]
        ]
        bars += [Bar(fmt.baseline_label(name), value, class_="base") for name, value in block["baselines"].items()]
        shown.append((fmt.rows_label(block["rows"]).capitalize(), bars))
    note = "Large dots: mean over seeds; small dots: single runs; whiskers: ± one standard deviation."
    return interval_chart(shown, title="Accuracy by labelled rows", axis="accuracy", note=note)


def difference_chart(blocks: Sequence[dict[str, Any]]) -> Any:
    """Draw the paired difference of each method to scratch."""
    colours = {GAIN: "s0", LOSS: "s1"}
    shown = []
    for block in blocks:
        bars = [
            Bar(
                line.group.label,
                line.interval.mean,
                line.interval.low,
                line.interval.high,
                class_=colours.get(line.verdict, "same"),
                tip=f"{line.group.label}, {fmt.rows_label(block['rows'])}: {line.verdict}",
            )
            for line in block["lines"]
            if line.interval
        ]
        if bars:
            shown.append((fmt.rows_label(block["rows"]).capitalize(), bars))
    return interval_chart(
        shown,
        title="Difference to training from scratch",
        axis="percentage points of accuracy",
        show=fmt.points,
        show_tick=lambda value: fmt.points(value).replace("±", "").removesuffix(".0"),
        zero=True,
        note="Blue: gain; orange: loss; grey: the interval covers zero, so no gain is shown.",
    )
