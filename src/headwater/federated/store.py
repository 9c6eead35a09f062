"""Many clients' encoded rows in one file that is read where it lies: it opens at once, and a round costs its cohort.

An Arrow IPC file with one line a client, sorted by their names, so that one is found by bisection. Arrow trusts the
offsets in a file, so each cell is checked before it is read.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, overload

import numpy as np

from headwater.data.examples import Examples
from headwater.errors import DataError, MissingDependency
from headwater.federated.protocols import ClientId
from headwater.files import writing

_FORMAT = b"headwater clients 1"
_MOST_CLIENTS, _MOST_NUMBERS = 2**16, 2**22
"""Of a record batch: what writing holds in memory."""
_MOST_READS = 50
"""Of clients until the pages that they lie on no longer count as this process's memory."""
_DIGITS = 6
"""Of the number of channels, at most."""


class ClientStore(Mapping[ClientId, Examples]):
    """The clients of a file that `write_store` made, as a mapping from their names to their rows.

    Args:
        path: The file; it must stay as it is while the store is in use.

    Raises:
        DataError: The file is missing, damaged or not one of these; of a single client also later, when it is read.
        MissingDependency: pyarrow isn't installed.
    """

    def __init__(self, path: Path) -> None:
        arrow = _pyarrow()
        self._path = path
        with _reading(path):
            with path.open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            table = arrow.ipc.open_file(arrow.py_buffer(self._mapped)).read_all()
            table.validate()
        metadata = table.schema.metadata or {}
        if metadata.get(b"headwater") != _FORMAT:
            raise DataError(f"{path} is an Arrow file, but no store of clients: make one with write_store")
        channels = metadata.get(b"channels", b"")
        self._channels = int(channels) if channels.isdigit() and len(channels) < _DIGITS else 0
        if not table.schema.equals(_schema(self._channels), check_metadata=True) or not table.num_rows:
            raise DataError(f"{path} is a damaged store of clients: write it again")
        self._chunks = {name: table.column(name).chunks for name in table.column_names}
        self._starts = [0, *accumulate(map(len, self._chunks["client"]))]
        self._reads = 0
        self.clients: Sequence[ClientId] = _Names(self)
        """All names in order; one is read when it is asked for."""

    def __getitem__(self, client: ClientId) -> Examples:
        self._reads += 1
        if not self._reads % _MOST_READS:
            self._mapped.madvise(mmap.MADV_DONTNEED)  # the system's cache keeps the pages, this process need not
        with _reading(self._path):
            index = bisect_left(range(len(self)), client, key=self._name)
            if index == len(self) or self._name(index) != client:
                raise KeyError(client)
            columns = ("inputs", "lengths", "targets")
            inputs, lengths_N, targets_N = (self._cell(column, index).flatten().to_numpy() for column in columns)
        if self._channels and not len(inputs) % self._channels:
            inputs = inputs.reshape(-1, self._channels)
        whole = len(lengths_N) and lengths_N.min() > 0 and lengths_N.sum(dtype=np.int64) == len(inputs)
        if not whole or len(targets_N) not in {0, len(lengths_N)}:
            raise DataError(f"{self._path}: the rows of client {client!r} are damaged: write the store again")
        return Examples(np.split(inputs, lengths_N.cumsum()[:-1]), targets_N)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.clients)

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, place: int) -> ClientId:
        """Return the name at a place, counted from 0."""
        with _reading(self._path):
            return self._name(place)

    def _name(self, place: int) -> ClientId:
        return str(self._cell("client", place)[0].as_py())

    def _cell(self, column: str, place: int) -> Any:
        """Return a checked array of one cell."""
        number = bisect_right(self._starts, place) - 1
        cell = self._chunks[column][number].slice(place - self._starts[number], 1)
        cell.validate(full=True)
        return cell


class _Names(Sequence[ClientId]):
    """The names of a store's clients, read one by one."""

    def __init__(self, store: ClientStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    @overload
    def __getitem__(self, index: int) -> ClientId: ...
    @overload
    def __getitem__(self, index: slice) -> list[ClientId]: ...
    def __getitem__(self, index: int | slice) -> ClientId | list[ClientId]:
        places = range(len(self))[index]
        return self._store.name(places) if isinstance(places, int) else [self._store.name(place) for place in places]


def write_store(path: Path, clients: Iterable[tuple[ClientId, Examples]]) -> None:
    """Write a store, as a whole or not at all, with no more than a part of it in memory.

    Args:
        path: The file.
        clients: Names and rows, sorted by the names; all rows of one kind, tokens or numbers of as many channels.

    Raises:
        DataError: There are no clients, they are out of order, or their rows are of several kinds.
        OutputError: The disk is full or the place can't be written.
        MissingDependency: pyarrow isn't installed.
    """
    arrow = _pyarrow()
    clients = iter(clients)
    first = next(clients, None)
    if first is None:
        raise DataError(f"{path} would be a store without clients: give one at least")
    schema = _schema(_kind(first[1]))
    with writing(path) as stream, arrow.ipc.new_file(stream, schema) as file:
        for group in _groups(chain([first], clients), _kind(first[1])):
            file.write_batch(_batch(group, schema))


def _groups(clients: Iterable[tuple[ClientId, Examples]], kind: int) -> Iterator[list[tuple[ClientId, Examples]]]:
    """Yield the clients in lists of bounded size, checked."""
    group: list[tuple[ClientId, Examples]] = []
    numbers, last = 0, None
    for client, examples in clients:
        if last is not None and client <= last:
            raise DataError(f"client {client!r} comes after {last!r}: give each once, sorted by name")
        if _kind(examples) != kind:
            raise DataError(f"client {client!r} has rows of another kind than those before: one store holds one kind")
        last = client
        group.append((client, examples))
        numbers += examples.inputs.size
        if len(group) == _MOST_CLIENTS or numbers >= _MOST_NUMBERS:
            yield group
            group, numbers = [], 0
    if group:
        yield group


def _batch(group: Sequence[tuple[ClientId, Examples]], schema: Any) -> Any:
    arrow = _pyarrow()
    parts: dict[str, list[np.ndarray]] = {
        "inputs": [examples.inputs.reshape(-1) for _, examples in group],
        "lengths": [examples.lengths_N for _, examples in group],
        "targets": [examples.targets_N for _, examples in group],
    }
    columns = [arrow.array([client for client, _ in group], arrow.string())]
    for name, values in parts.items():
        offsets = arrow.array(np.cumsum([0, *map(len, values)]), arrow.int32())
        numbers = arrow.array(np.concatenate(values), schema.field(name).type.value_type)
        columns.append(arrow.ListArray.from_arrays(offsets, numbers))
    return arrow.record_batch(columns, schema=schema)


def _kind(examples: Examples) -> int:
    """Return how many channels a row has; 0 for tokens."""
    return examples.inputs.shape[1] if examples.inputs.ndim > 1 else 0


def _schema(channels: int) -> Any:
    arrow = _pyarrow()
    numbers = arrow.list_(arrow.float32() if channels else arrow.int32())
    columns = {"client": arrow.string(), "inputs": numbers, "lengths": arrow.list_(arrow.int32())}
    columns["targets"] = arrow.list_(arrow.int32())
    return arrow.schema(columns, {b"headwater": _FORMAT, b"channels": str(channels).encode()})


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into a `DataError`."""
    arrow = _pyarrow()
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:  # an empty file can't be mapped
        raise DataError(f"{path} can't be read as a store of clients ({str(error).splitlines()[0]})") from error


def _pyarrow() -> Any:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependency("pyarrow", extra="parquet", purpose="a store of clients") from error
    return pa
