"""The stages found under a folder, and what is asked of them more than once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from headwater.errors import CheckpointError, DataError
from headwater.records import STAGE_FILE, DataUse, StageRecord

ACCURACY_FROM = ("test", "after", "valid")


def find_records(folder: Path) -> list[StageRecord]:
    """Read every record in the folder and below it, in the order in which the stages started.

    Raises:
        DataError: The folder is missing.
        CheckpointError: It holds no record, or one that can't be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} isn't a folder: give the folder that `headwater run` or a stage wrote")
    paths = sorted(
        path
        for path in folder.rglob(STAGE_FILE)
        if not any(part.startswith(".") or part.endswith(".partial") for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise CheckpointError(
            f"no {STAGE_FILE} in {folder} or below: give the folder that `headwater run` or a stage wrote"
        )
    return sorted(map(load, paths), key=lambda record: (record.started, record.name))


def load(path: Path) -> StageRecord:
    """Read one record; whatever the disk answers becomes an error that names it."""
    try:
        return StageRecord.load(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"can't read {path}: {error.strerror}; make it readable or run the stage again"
        ) from error


def with_verb(records: Iterable[StageRecord], verb: str) -> list[StageRecord]:
    """Return the stages that did this."""
    return [record for record in records if record.verb == verb]


def measured(record: StageRecord) -> tuple[str, dict[str, float]] | None:
    """Return what the stage's accuracy was measured on and the figures, best evidence first.

    A language model's accuracy is that of tokens, which is nothing to set beside that of rows.
    """
    for name in (*ACCURACY_FROM, *sorted(record.metrics)):
        figures = record.metrics.get(name, {})
        if "accuracy" in figures and "perplexity" not in figures:
            return name, figures
    return None


def accuracy(record: StageRecord) -> float | None:
    """Return the stage's accuracy, if it has one."""
    found = measured(record)
    return found[1]["accuracy"] if found else None


def trained_on(record: StageRecord) -> DataUse | None:
    """Return the rows that the stage learned from."""
    return next((use for use in record.data if use.role == "train"), None)


def same_test(first: StageRecord, second: StageRecord) -> bool:
    """Say whether two stages were tested on the same rows in the same order."""
    return first is second or first.test_fingerprint == second.test_fingerprint != ""


def ancestors(record: StageRecord, records: Sequence[StageRecord]) -> list[StageRecord]:
    """Return the stages that this one came from, nearest first; of equal models the first one made."""
    by_identity = {made.identity: made for made in reversed(records) if made.identity}
    found: list[StageRecord] = []
    waiting = [parent.identity for parent in record.parents]
    while waiting:
        ancestor = by_identity.get(waiting.pop(0))
        if ancestor is not None and ancestor is not record and ancestor not in found:
            found.append(ancestor)
            waiting.extend(parent.identity for parent in ancestor.parents)
    return found


def distinct_labels(records: Sequence[StageRecord]) -> list[str]:
    """Name the stages by their method, and by their folder where the method says too little."""
    labels = [record.method or record.name for record in records]
    labels = [
        f"{label} (ε {record.privacy.epsilon:.3g})" if record.privacy else label
        for label, record in zip(labels, records, strict=True)
    ]
    return [label if labels.count(label) == 1 else record.name for label, record in zip(labels, records, strict=True)]


def plain(value: object) -> str:
    """Write an option's value as its file would."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
