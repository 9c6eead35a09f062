"""What the section on meta-learning shows: accuracies on episodes of tasks that were never learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headwater.records import StageRecord
from headwater.report import formatting as fmt
from headwater.statistics import paired_bootstrap, verdict

LEARNERS = {
    "meta_learned": "Meta-learned",
    "not_adapted": "Meta-learned, not adapted",
    "plain_start": "Plain start",
}
PLAIN = "plain_start"


def few_shot_facts(records: Sequence[StageRecord]) -> dict[str, Any] | None:
    """Return each meta-learning's accuracies over its episodes, or None without one."""
    stages = [
        {"name": record.name, "method": record.method, "episodes": len(record.episodes), "lines": lines(record)}
        for record in records
        if record.episodes
    ]
    return {"stages": stages} if stages else None


def lines(record: StageRecord) -> list[dict[str, Any]]:
    """Return one line a learner: its accuracy, and the paired difference to the plain start."""
    names = [name for name in record.episodes[0].accuracies if all(name in one.accuracies for one in record.episodes)]
    found = {name: [one.accuracies[name] for one in record.episodes] for name in names}
    made = []
    for name in sorted(names, key=[*LEARNERS, *names].index):
        values = found[name]
        over = paired_bootstrap(values, found[PLAIN]) if PLAIN in found and name != PLAIN else None
        made.append(
            {
                "label": LEARNERS.get(name) or fmt.baseline_label(name),
                "accuracy": paired_bootstrap(values, [0.0] * len(values)),
                "over": over,
                "verdict": verdict(over) if over and name == "meta_learned" else "",
            }
        )
    return made
