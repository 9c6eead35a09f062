"""Numeric rows from tables with a step a line, from columns of lists, and from numpy archives.

Shapes: N rows, T steps, C channels, S steps of all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from headwater.config import ValueColumns
from headwater.data.arrays import read_arrays
from headwater.data.table import check_columns, plain_text, read_raw, read_table
from headwater.errors import DataError

ARCHIVE = ".npz"
EVERY_ARRAY = "*"
"""In place of columns: each array of an archive is a recording."""
SCALE = "__scale"
"""An archive's array NAME is to be multiplied with the number NAME__scale, where there is one."""


LARGEST = 1e30
"""The largest number that a row may hold: the squares of larger ones don't fit, and hardly any quantity has such."""


@dataclass(frozen=True)
class Series:
    """Numeric rows of a file.

    Attributes:
        values: Each row's finite numbers, (T, C) with T and C at least 1 and the same C for all.
        names: What each row is called: its id, its array, or its number from 1.
        labels: One a row; empty where none were asked for.
        clients: Likewise.
    """

    values: Sequence[np.ndarray]
    names: Sequence[str]
    labels: Sequence[str] = field(default_factory=list)
    clients: Sequence[str] = field(default_factory=list)


def read_series(path: Path, columns: ValueColumns, *, label: str | None = None, client: str | None = None) -> Series:
    """Read numeric rows.

    Args:
        path: A table (see `headwater.data.table.read_table`) or a `.npz` archive, whose arrays are its columns.
        columns: Where the numbers are.
        label: The column of the label, if it is needed.
        client: The column of the client, if it is needed.

    Raises:
        DataError: The file or a column can't be used; rows are empty, ragged or of several numbers of channels; a
            number is missing, not finite or too large; times don't rise.
    """
    names = columns.names
    if path.suffix.lower() == ARCHIVE:
        series = _from_archive(path, names, columns, label, client)
    elif columns.id is not None:
        asked = [columns.id, *names, *([columns.time] if columns.time else []), *filter(None, (label, client))]
        table: dict[str, Any] = dict(read_table(path, list(dict.fromkeys(asked))))
        table |= {name: _numbers(table[name], path, name) for name in names}
        series = _grouped(path, table, names, columns, label, client)
    else:
        series = _from_lists(path, names, columns, label, client)
    widths = {values_TC.shape[1]: name for values_TC, name in zip(series.values, series.names, strict=True)}
    if len(widths) > 1:
        (one, here), (other, there), *_ = widths.items()
        raise DataError(
            f"{path}: row {here} has {one} channels and row {there} has {other}: give all rows the same channels"
            + ("" if columns.channels_first else ", or add --channels-first if the outer list holds the channels")
        )
    for values_TC, name in zip(series.values, series.names, strict=True):
        _check_finite(values_TC, f"{path}, row {name}")
    return series


def parse_steps(value: Any, where: str, *, channels_first: bool = False) -> np.ndarray:
    """Return a list of numbers, a step each, or of lists of numbers as an array (T, C).

    Args:
        value: What JSON or Parquet has given.
        where: For messages.
        channels_first: The inner lists are channels; else they are steps.

    Raises:
        DataError: It is empty, ragged or holds something else than numbers.
    """
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: {_kind(value)} where a list of numbers, or of lists of them, was expected")
    inner = "channel" if channels_first else "step"
    nested = isinstance(value[0], list)
    lists = value if nested else [[number] for number in value]
    width = len(lists[0])
    for place, numbers in enumerate(lists, start=1):
        if not isinstance(numbers, list) or len(numbers) != width or not width:
            said = f"a list of {len(numbers)}" if isinstance(numbers, list) else _kind(numbers)
            raise DataError(f"{where}, {inner} {place}: {said} where {max(width, 1)} numbers were expected")
        for number in numbers:
            if type(number) not in (int, float):
                raise DataError(f"{where}, {inner} {place}: {_kind(number)} where a number was expected")
    try:
        array = np.array(lists, dtype=np.float64)
    except OverflowError as error:
        raise DataError(f"{where}: a whole number is too large to compute with") from error
    return array.T if channels_first and nested else array


def _from_lists(
    path: Path, names: Sequence[str], columns: ValueColumns, label: str | None, client: str | None
) -> Series:
    """Read rows whose numbers stand in lists: one column of all channels, or a column a channel."""
    table = read_raw(path, list(dict.fromkeys([*names, *filter(None, (label, client))])))
    values = []
    for row, cells in enumerate(zip(*(table[name] for name in names), strict=True), start=1):
        if isinstance(cells[0], str):
            raise DataError(
                f"{path}, row {row}: the column {names[0]!r} holds a text where a list of numbers was expected: a "
                "table with a step a line needs --id, the column that says of which row a line is a step"
            )
        parts = [
            parse_steps(cell, f"{path}, row {row}, column {name!r}", channels_first=columns.channels_first)
            for name, cell in zip(names, cells, strict=True)
        ]
        values.append(_beside(parts, names, f"{path}, row {row}"))

    def texts(column: str | None) -> list[str]:
        return [plain_text(value, path, row, column) for row, value in enumerate(table[column], 1)] if column else []

    return Series(values, [str(row) for row in range(1, len(values) + 1)], texts(label), texts(client))


def _beside(parts: Sequence[np.ndarray], names: Sequence[str], where: str) -> np.ndarray:
    """Return columns of channels as one array (T, C)."""
    for part, name in zip(parts, names, strict=True):
        if len(part) != len(parts[0]):
            raise DataError(f"{where}: the column {name!r} has {len(part)} steps and {names[0]!r} {len(parts[0])}")
    return np.concatenate(parts, 1) if len(parts) > 1 else parts[0]


def _from_archive(
    path: Path, names: Sequence[str], columns: ValueColumns, label: str | None, client: str | None
) -> Series:
    arrays = read_arrays(path)
    if list(names) == [EVERY_ARRAY]:
        return _recordings(path, arrays, columns, label, client)
    others = list(filter(None, (columns.id, columns.time, label, client)))
    check_columns(path, [*names, *others], [name for name in arrays if not name.endswith(SCALE)])
    table: dict[str, Any] = {name: _texts(path, name, arrays[name]) for name in others}
    wanted = 2 if columns.id is not None else 3
    for name in names:
        array = _scaled(path, name, arrays)
        if array.ndim == wanted - 1:
            array = array[..., None]
        elif array.ndim == wanted == 3 and columns.channels_first:
            array = array.transpose(0, 2, 1)
        if array.ndim != wanted or 0 in array.shape:
            shape = "(steps,) or (steps, channels)" if columns.id else "(rows, steps) or (rows, steps, channels)"
            raise DataError(f"{path}: the array {name!r} has the shape {arrays[name].shape} where {shape} was expected")
        table[name] = array
    sizes = {name: len(column) for name, column in table.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{name!r} {size:,}" for name, size in sizes.items())
        raise DataError(f"{path}: the arrays have different numbers of {'steps' if columns.id else 'rows'}: {said}")
    if columns.id is not None:
        return _grouped(path, table, names, columns, label, client)
    rows = range(sizes[names[0]])
    values = [_beside([table[name][row] for name in names], names, f"{path}, row {row + 1}") for row in rows]
    return Series(values, [str(row + 1) for row in rows], *([table[c] if c else [] for c in (label, client)]))


def _recordings(
    path: Path, arrays: Mapping[str, np.ndarray], columns: ValueColumns, label: str | None, client: str | None
) -> Series:
    """Take each array as a row; its label is its name, up to a `/` if there is one."""
    if client is not None:
        raise DataError(f"the column {client!r}: {path} is read as an array a recording, which has no other columns")
    names = [name for name in arrays if not name.endswith(SCALE)]
    if not names:
        raise DataError(f"{path} holds no arrays: give a recording at least")
    values = []
    for name in names:
        array = _scaled(path, name, arrays)
        if array.ndim not in (1, 2) or 0 in array.shape:
            raise DataError(
                f"{path}: the array {name!r} has the shape {array.shape} where (steps,) or (steps, channels) was "
                "expected"
            )
        array = array[:, None] if array.ndim == 1 else array
        values.append(array.T if columns.channels_first and arrays[name].ndim == 2 else array)
    return Series(values, names, [name.partition("/")[0] for name in names] if label is not None else [])


def _scaled(path: Path, name: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return an array's numbers, times its scale."""
    array, scale = arrays[name], arrays.get(name + SCALE)
    for each in (array, scale):
        if each is not None and each.dtype.kind not in "fiu":
            raise DataError(f"{path}: the array {name!r} holds {each.dtype} where numbers were expected")
    if scale is None:
        return array
    if scale.size != 1:
        raise DataError(f"{path}: {name + SCALE!r} has the shape {scale.shape} where one number was expected")
    return array * scale.astype(np.float64).reshape(())


def _texts(path: Path, name: str, array: np.ndarray) -> list[str]:
    if array.ndim != 1:
        raise DataError(f"{path}: the array {name!r} has the shape {array.shape} where one value a row was expected")
    return [plain_text(value, path, row, name) for row, value in enumerate(array.tolist(), start=1)]


def _grouped(
    path: Path,
    table: Mapping[str, Any],
    names: Sequence[str],
    columns: ValueColumns,
    label: str | None,
    client: str | None,
) -> Series:
    """Collect the steps of each row, in the order in which the rows begin; lines of several rows may alternate."""
    ids = table[str(columns.id)]
    rows: dict[str, list[int]] = {}
    for line, name in enumerate(ids):
        if not name.strip():
            raise DataError(f"{path}, line of data {line + 1}: the column {columns.id!r} is blank")
        rows.setdefault(name, []).append(line)
    if columns.time is not None:
        times = moments(table[columns.time], path, columns.time)
        for name, lines in rows.items():
            _check_times(path, name, lines, times, table[columns.time])
    values_SC = np.concatenate([np.asarray(table[name]).reshape(len(ids), -1) for name in names], 1)

    def of_rows(column: str | None) -> list[str]:
        return [_one(path, name, lines, column, table[column]) for name, lines in rows.items()] if column else []

    return Series([values_SC[lines] for lines in rows.values()], list(rows), of_rows(label), of_rows(client))


def _one(path: Path, name: str, lines: Sequence[int], column: str, values: Sequence[str]) -> str:
    """Return what a column says of a row."""
    for line in lines:
        if values[line] != values[lines[0]]:
            raise DataError(
                f"{path}, line of data {line + 1}: the column {column!r} says {values[line]!r} of row {name!r}, and "
                f"{values[lines[0]]!r} in line {lines[0] + 1}: a row has one"
            )
    return values[lines[0]]


def _check_times(
    path: Path, name: str, lines: Sequence[int], times: Sequence[float] | Sequence[datetime], said: Sequence[str]
) -> None:
    for before, line in itertools.pairwise(lines):
        if not times[line] > times[before]:  # type: ignore[operator]  # all are of one type
            what = "is there twice" if times[line] == times[before] else f"comes after {said[before]!r}"
            raise DataError(
                f"{path}, line of data {line + 1}: the time {said[line]!r} of row {name!r} {what}: sort the lines of "
                "each row by time, one for each step"
            )


def moments(column: Sequence[str], path: Path | str, name: str) -> Sequence[float] | Sequence[datetime]:
    """Return times that can be compared: all numbers, or all dates (ISO 8601).

    Args:
        column: As it stands in the file.
        path: Of the file, for errors.
        name: Of the column, for errors.

    Raises:
        DataError: They are neither, or some dates have a zone and some have none.
    """
    if _is_number(column[0]):
        return list(map(float, _numbers(column, path, name)))
    dates: list[datetime] = []
    for line, text in enumerate(column, start=1):
        try:
            dates.append(datetime.fromisoformat(text.strip()))
        except ValueError as error:
            raise DataError(
                f"{path}, line of data {line}: the column {name!r} holds {text!r} where a number or a date like "
                "2024-01-31 or 2024-01-31T23:59:00 was expected"
            ) from error
        if (dates[-1].utcoffset() is None) != (dates[0].utcoffset() is None):
            raise DataError(
                f"{path}, line of data {line}: {text!r} and {column[0]!r} can't be compared: give all "
                "times with their zone, or none"
            )
    return dates


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _numbers(column: Sequence[str], path: Path | str, name: str) -> np.ndarray:
    """Return a column of texts as float64 (S,).

    Raises:
        DataError: A text is no finite number.
    """
    numbers = []
    for line, text in enumerate(column, start=1):
        try:
            number = float(text)
        except ValueError as error:
            said = "is blank" if not text.strip() else f"holds {text!r}"
            raise DataError(
                f"{path}, line of data {line}: the column {name!r} {said} where a number was expected: fill it in or "
                "leave the line out"
            ) from error
        if not abs(number) <= LARGEST:
            raise DataError(
                f"{path}, line of data {line}: the column {name!r} holds {text!r}: fill it in with a finite number, up "
                f"to {LARGEST:g}, or leave the line out"
            )
        numbers.append(number)
    return np.array(numbers, dtype=np.float64)


def _check_finite(values_TC: np.ndarray, where: str) -> None:
    usable_TC = np.abs(values_TC) <= LARGEST
    if not usable_TC.all():
        step, channel = (int(places[0]) for places in np.nonzero(~usable_TC))
        raise DataError(
            f"{where}, step {step + 1}, channel {channel + 1}: {values_TC[step, channel]} isn't a finite number up to "
            f"{LARGEST:g}: fill it in or leave the row out"
        )


def _kind(value: object) -> str:
    if value is None:
        return "no value"
    return "an empty list" if value == [] else f"a {type(value).__name__}"
