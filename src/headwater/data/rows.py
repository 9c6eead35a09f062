"""Labelled rows of text or numbers: read, checked, chosen and split.

Every choice is a pure function of the rows and a seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, cast

import numpy as np

from headwater.config import ValueColumns
from headwater.data.card import resolve
from headwater.data.examples import Examples
from headwater.data.series import read_series
from headwater.data.table import read_table
from headwater.errors import ConfigError, DataError, did_you_mean
from headwater.features.featurizer import FeatureOptions, Featurizer, Inputs
from headwater.features.numeric import NumericOptions
from headwater.files import sha256_file
from headwater.records import DataUse

LEAST_HELD_OUT = 50
"""Fewer held-out rows would choose an epoch or a round by chance."""
TOO_FEW = f"Too few rows to hold {LEAST_HELD_OUT} of them out"

_BY_ROW = ("inputs", "labels", "clients", "recordings", "starts", "times")
"""What `Rows` has one of for each row, or none of."""
Role = Literal["train", "valid", "test", "source", "unlabelled"]


@dataclass(frozen=True)
class Rows:
    """Rows of one file.

    Attributes:
        inputs: One text a row, never blank; or numbers (T steps, C channels), finite, C the same for all.
        labels: One label a row; empty where there are none.
        clients: One client a row; empty where there are none.
        source: What the user named.
        sha256: Of the file's bytes.
        recordings: Of numbers: what the file calls the row, or the recording that it is a window of; else empty.
        starts: Of windows: the step of its recording that each begins with, from 0; else empty.
        times: When each row is from, where that was asked for; else empty.
    """

    inputs: Inputs
    labels: Sequence[str]
    clients: Sequence[str]
    source: str
    sha256: str
    recordings: Sequence[str] = ()
    starts: Sequence[int] = ()
    times: Sequence[float] | Sequence[datetime] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def texts(self) -> Sequence[str]:
        """The rows as texts.

        Raises:
            DataError: They are numbers.
        """
        if len(self.inputs) and not isinstance(self.inputs[0], str):
            raise DataError(f"{self.source} was read as numbers, where texts are needed")
        return cast(Sequence[str], self.inputs)

    def take(self, rows: Sequence[int] | np.ndarray) -> Rows:
        """Return some of the rows, in the given order."""
        parts = {name: getattr(self, name) for name in _BY_ROW}
        taken: dict[str, Any] = {name: [part[i] for i in rows] for name, part in parts.items() if len(part)}
        return replace(self, **taken)

    def joined(self, others: Rows) -> Rows:
        """Return these rows and others of the same file."""
        both: dict[str, Any] = {name: [*getattr(self, name), *getattr(others, name)] for name in _BY_ROW}
        return replace(self, **both)

    def windows(self, options: NumericOptions) -> Rows:
        """Return the rows cut into windows, in order; one that is no longer than a window stays as it is."""
        length, stride = options.window, options.stride or options.window
        places = [
            (row, start)
            for row, steps in enumerate(self.inputs)
            for start in range(0, max(1, len(steps) - length + 1), stride)
        ]
        cut = [np.asarray(self.inputs[row])[start : start + length] for row, start in places]
        return replace(self.take([row for row, _ in places]), inputs=cut, starts=[start for _, start in places])

    def use(self, role: Role) -> DataUse:
        """Return the record of this use."""
        return DataUse(role=role, path=self.source, sha256=self.sha256, rows=len(self))

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows in order."""
        digest = hashlib.sha256()
        for index, row in enumerate(self.inputs):
            label = self.labels[index] if self.labels else ""
            digest.update(_key(row) + f"\x1f{label}\x1e".encode())
        return digest.hexdigest()

    def by_client(self) -> dict[str, np.ndarray]:
        """Return each client's row numbers, clients in sorted order."""
        found: dict[str, list[int]] = {}
        for index, client in enumerate(self.clients):
            found.setdefault(client, []).append(index)
        return {client: np.array(found[client]) for client in sorted(found, key=_natural)}

    def encode(self, featurizer: Featurizer, labels: Sequence[str]) -> Examples:
        """Return what a model reads of the rows.

        Raises:
            DataError: A row has a label that is not among `labels`, or other channels than the model.
        """
        return Examples(featurizer.encode_all(self.inputs), self.targets(labels))

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


def _key(row: str | np.ndarray) -> bytes:
    """Return bytes that are the same for the same rows only."""
    return row.encode() if isinstance(row, str) else f"{row.shape}{row.dtype}".encode() + row.tobytes()


def read_rows(
    data: str,
    *,
    text: str,
    label: str | None = None,
    client: str | None = None,
    values: ValueColumns | None = None,
    features: FeatureOptions | None = None,
) -> Rows:
    """Read the rows of a file or a card's split.

    Args:
        data: A file's path, or ``card:NAME/SPLIT``.
        text: The column of the text.
        label: The column of the label, if it is needed.
        client: The column of the client, if it is needed.
        values: Where numbers are, if the rows are numeric.
        features: How the model that is to read the rows prepares them, if that is known: it says their modality, and
            how recordings are cut.

    Raises:
        ConfigError: The model reads the other modality.
        DataError: The file or a column can't be used, or a text is blank.
    """
    numeric = values is not None and values.values is not None
    if features is not None and numeric != isinstance(features, NumericOptions):
        raise ConfigError(
            "the model reads text, not numbers: leave --values out, or transfer the model to the numbers first"
            if numeric
            else "the model reads numbers, not text: add --values with their columns, as it was trained with"
        )
    if values is not None and isinstance(features, NumericOptions) and _turned(values.names, features.columns):
        raise ConfigError(f"the model reads its channels in another order: give --values {','.join(features.columns)}")
    path = resolve(data)
    if values is not None and numeric:
        series = read_series(path, values, label=label, client=client)
        _refuse_blank(data, {str(label): series.labels, str(client): series.clients})
        rows = Rows(series.values, series.labels, series.clients, data, sha256_file(path), series.names)
        return rows.windows(features) if isinstance(features, NumericOptions) and features.window else rows
    table = read_table(path, list(dict.fromkeys(column for column in (text, label, client) if column is not None)))
    _refuse_blank(data, table)
    return Rows(table[text], table[label] if label else [], table[client] if client else [], data, sha256_file(path))


def _turned(names: Sequence[str], known: Sequence[str]) -> bool:
    """Return whether these are the known columns in another order; other names may well mean the same channels."""
    return names != known and sorted(names) == sorted(known)


def _refuse_blank(data: str, table: Mapping[str, Sequence[str]]) -> None:
    for column, values in table.items():
        for index, value in enumerate(values):
            if not value.strip():
                raise DataError(
                    f"{data}, row {index + 1}: the column {column!r} is blank: remove the row or fill it in"
                )


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

    Windows of one recording stay together. None are held out where that would be fewer than `LEAST_HELD_OUT`.
    """
    if len(rows) * share < LEAST_HELD_OUT:
        return rows, rows.take([])
    rng = np.random.default_rng([seed, 0x0E1D])
    together: dict[str | int, list[int]] = {}
    for index in range(len(rows)):
        together.setdefault(rows.recordings[index] if rows.recordings else index, []).append(index)
    strata: dict[str, list[list[int]]] = {}
    for members in together.values():
        strata.setdefault(rows.labels[members[0]] if rows.labels else "", []).append(members)
    chosen: set[int] = set()
    for label in sorted(strata):
        order = rng.permutation(len(strata[label]))
        chosen.update(*(strata[label][i] for i in order[: round(len(order) * share)]))
    if len(together) < len(rows) and len(chosen) < LEAST_HELD_OUT:
        chosen = set()
    return rows.take([i for i in range(len(rows)) if i not in chosen]), rows.take(sorted(chosen))


def row_notes(featurizer: Featurizer, train: Rows, test: Rows) -> list[str]:
    """Return what a reader of the figures should know of the rows: how many were cut, and which are no news."""
    notes = []
    if cut := sum(map(featurizer.is_cut, train.inputs)):
        most = featurizer.options.max_length
        share = f"{cut:,} of {len(train):,} training rows ({cut / len(train):.1%})"
        notes.append(f"{share} are longer than {most} {featurizer.unit}: the rest of each was cut off.")
    known = set(map(_key, train.inputs))
    if repeated := sum(_key(row) in known for row in test.inputs):
        what = "have a text that stands" if featurizer.modality == "text" else "have the numbers of one"
        notes.append(f"{repeated:,} of {len(test):,} rows to measure on {what} among the training rows.")
    return notes


def _natural(value: str) -> tuple[int, float, str]:
    """Sort numbers by value, before text."""
    try:
        number = float(value)
    except ValueError:
        return (1, 0.0, value)
    # "nan" and "inf" are words here: a number that isn't one has no place in an order.
    return (0, number, value) if math.isfinite(number) else (1, 0.0, value)
