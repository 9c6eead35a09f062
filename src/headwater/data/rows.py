"""Labelled rows of text: read, checked, chosen and split.

Every choice is a pure function of the rows and a seed.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headwater.data.card import resolve
from headwater.data.examples import Examples
from headwater.data.table import read_table
from headwater.errors import DataError, did_you_mean
from headwater.features.text import TextFeaturizer
from headwater.files import sha256_file
from headwater.records import DataUse

LEAST_HELD_OUT = 50
"""Fewer held-out rows would choose an epoch or a round by chance."""
TOO_FEW = f"Too few rows to hold {LEAST_HELD_OUT} of them out"

Role = Literal["train", "valid", "test", "source", "unlabelled"]


@dataclass(frozen=True)
class Rows:
    """Rows of one file.

    Attributes:
        texts: One text a row, never blank.
        labels: One label a row; empty where there are none.
        clients: One client a row; empty where there are none.
        source: What the user named.
        sha256: Of the file's bytes.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    clients: Sequence[str]
    source: str
    sha256: str

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """Return some of the rows, in the given order."""
        return Rows(
            [self.texts[i] for i in rows],
            [self.labels[i] for i in rows] if self.labels else [],
            [self.clients[i] for i in rows] if self.clients else [],
            self.source,
            self.sha256,
        )

    def use(self, role: Role) -> DataUse:
        """Return the record of this use."""
        return DataUse(role=role, path=self.source, sha256=self.sha256, rows=len(self))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows in order."""
        digest = hashlib.sha256()
        for index, text in enumerate(self.texts):
            label = self.labels[index] if self.labels else ""
            digest.update(f"{text}\x1f{label}\x1e".encode())
        return digest.hexdigest()

    def by_client(self) -> dict[str, np.ndarray]:
        """Return each client's row numbers, clients in sorted order."""
        found: dict[str, list[int]] = {}
        for index, client in enumerate(self.clients):
            found.setdefault(client, []).append(index)
        return {client: np.array(found[client]) for client in sorted(found, key=_natural)}

    def encode(self, featurizer: TextFeaturizer, labels: Sequence[str]) -> Examples:
        """Return the rows as numbers.

        Raises:
            DataError: A row has a label that is not among `labels`.
        """
        return Examples(featurizer.encode_all(self.texts), self.targets(labels))

    def targets(self, labels: Sequence[str]) -> list[int]:
        """Return the number of each row's label; empty where the rows have none.

        Raises:
            DataError: A row has a label that is not among `labels`.
        """
        numbers = {label: number for number, label in enumerate(labels)}
        for index, label in enumerate(self.labels):
            if label not in numbers:
                raise DataError(
                    f"{self.source}, row {index + 1}: the label {label!r} was never seen in training"
                    f"{did_you_mean(label, labels)}; the model knows: {', '.join(labels)}. "
                    "Remove such rows, or train with rows of that label"
                )
        return [numbers[label] for label in self.labels]


def read_rows(data: str, *, text: str, label: str | None = None, client: str | None = None) -> Rows:
    """Read the rows of a file or a card's split.

    Args:
        data: A file's path, or ``card:NAME/SPLIT``.
        text: The column of the text.
        label: The column of the label, if it is needed.
        client: The column of the client, if it is needed.

    Raises:
        DataError: The file or a column can't be used, or a text is blank.
    """
    path = resolve(data)
    columns = list(dict.fromkeys(column for column in (text, label, client) if column is not None))
    table = read_table(path, columns)
    for column in columns:
        for index, value in enumerate(table[column]):
            if not value.strip():
                raise DataError(
                    f"{data}, row {index + 1}: the column {column!r} is blank: remove the row or fill it in"
                )
    return Rows(table[text], table[label] if label else [], table[client] if client else [], data, sha256_file(path))


def label_set(rows: Rows) -> tuple[str, ...]:
    """Return the labels of training rows in order: as numbers if all are, else as text.

    Raises:
        DataError: There is only one.
    """
    found = set(rows.labels)
    if len(found) < 2:
        raise DataError(
            f"{rows.source}: all {len(rows)} rows have the label {next(iter(found))!r}, but learning to tell labels "
            "apart needs rows of at least two: check the label column, or add rows of another label"
        )
    return tuple(sorted(found, key=_natural))


def choose(rows: Rows, count: int, seed: int) -> Rows:
    """Return `count` rows drawn evenly over the labels (all where `count` is 0).

    Raises:
        DataError: There are fewer.
    """
    if not count or count == len(rows):
        return rows
    if count > len(rows):
        raise DataError(f"{rows.source} has {len(rows)} rows where {count} were asked for: lower --rows")
    order = np.random.default_rng([seed, 0x0C01]).permutation(len(rows))
    queues: dict[str, list[int]] = {}
    for index in order:
        queues.setdefault(rows.labels[index] if rows.labels else "", []).append(int(index))
    taken: list[int] = []
    while len(taken) < count:
        for label in sorted(queues):
            if queues[label] and len(taken) < count:
                taken.append(queues[label].pop())
    return rows.take(sorted(taken))


def hold_out(rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Split rows into those to learn from and those held out, keeping the labels' shares.

    None are held out where that would be fewer than `LEAST_HELD_OUT`.
    """
    if len(rows) * share < LEAST_HELD_OUT:
        return rows, rows.take([])
    rng = np.random.default_rng([seed, 0x0E1D])
    held: list[int] = []
    strata = Counter(rows.labels) if rows.labels else Counter({"": len(rows)})
    for label in sorted(strata):
        members = [i for i in range(len(rows)) if not rows.labels or rows.labels[i] == label]
        held += [int(i) for i in rng.permutation(members)[: round(len(members) * share)]]
    chosen = set(held)
    return rows.take([i for i in range(len(rows)) if i not in chosen]), rows.take(sorted(chosen))


def row_notes(featurizer: TextFeaturizer, train: Rows, test: Rows) -> list[str]:
    """Return what a reader of the figures should know of the rows: how many were cut, and which are no news."""
    notes = []
    if cut := sum(map(featurizer.is_cut, train.texts)):
        most = featurizer.options.max_length
        share = f"{cut:,} of {len(train):,} training rows ({cut / len(train):.1%})"
        notes.append(f"{share} are longer than {most} tokens: the rest of each was cut off.")
    known = set(train.texts)
    if repeated := sum(text in known for text in test.texts):
        notes.append(
            f"{repeated:,} of {len(test):,} rows to measure on have a text that stands among the training rows."
        )
    return notes


def _natural(value: str) -> tuple[int, float, str]:
    """Sort numbers by value, before text."""
    try:
        number = float(value)
    except ValueError:
        return (1, 0.0, value)
    # "nan" and "inf" are words here: a number that isn't one has no place in an order.
    return (0, number, value) if math.isfinite(number) else (1, 0.0, value)
