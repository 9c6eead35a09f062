"""A population for a simulation: each client's rows, encoded, and the rows that are held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from headwater.config import DataOptions, ValueColumns
from headwater.data.examples import Examples
from headwater.data.rows import LEAST_HELD_OUT, Rows, choose, hold_out, label_set, read_rows, row_notes
from headwater.data.series import moments
from headwater.errors import ConfigError, DataError
from headwater.features.featurizer import FeatureOptions, Featurizer
from headwater.federated import PARTITIONERS
from headwater.federated.partition import deal
from headwater.federated.protocols import ClientId
from headwater.federated.store import ClientStore, write_store
from headwater.records import ClientGroup, Spread
from headwater.registry import made, name_in, read_by

_MOST_GROUPS = 100
"""That the picture of a population has room for."""
_READ_BY = {"alpha": "dirichlet or quantity", "labels_per_client": "labels"}


class PopulationOptions(DataOptions):
    """Who the clients are."""

    client: str | None = None
    """The column that names each row's client; without it, clients are made by `--partition`."""
    partition: Annotated[str, name_in("headwater.partitioners", PARTITIONERS)] = "dirichlet"
    """How rows without a client column are dealt: `iid`; unevenly over the labels (`dirichlet`), or a few `labels` for
    each; by unequal sizes (`quantity`); by the rows' `length`; in blocks of `time`; or by their words
    (`vocabulary`)."""
    partition_column: str | None = None
    """The column of numbers or dates that `--partition time` orders the rows by; left out, it is the file's order."""
    clients: Annotated[int, Field(ge=2)] = 20
    """How many clients to make where there is no client column."""
    alpha: Annotated[float, Field(gt=0.0)] = 0.5
    """Evenness of the `dirichlet` and `quantity` partitions; small values give clients with mostly one label, or with
    few rows."""
    labels_per_client: Annotated[int, Field(ge=1)] = 2
    """How many labels each client holds, with `--partition labels`."""

    def unread(self) -> dict[str, str]:
        """A client column leaves nothing to deal; a partitioner reads what it has a field for."""
        if self.client is not None:
            return dict.fromkeys(("partition", "partition_column", "clients", *_READ_BY), "without --client")
        read = read_by("headwater.partitioners", PARTITIONERS, self.partition)
        unread = {name: f"with --partition {by}" for name, by in _READ_BY.items() if name not in read}
        return unread | ({} if self.partition == "time" else {"partition_column": "with --partition time"})


@dataclass(frozen=True)
class Population:
    """The rows of a federation.

    Attributes:
        train: Training rows, each with its client.
        valid: Held-out rows for stopping, from all clients; empty where there are too few rows.
        test: Rows to report on, each with its client; the held-out ones where no test rows were given.
        test_name: ``"test"`` or ``"valid"``.
        labels: The model's labels; none where the task has none.
    """

    train: Rows
    valid: Rows
    test: Rows
    test_name: str
    labels: tuple[str, ...]

    def everything(self) -> Rows:
        """Return the training and the held-out rows together."""
        return self.train.joined(self.valid)

    def notes(self, featurizer: Featurizer) -> list[str]:
        """Return what a reader of the figures should know of the rows."""
        return row_notes(featurizer, self.train, self.test)

    def spread(self) -> Spread:
        """Return how the training rows lie over the clients; very many clients are put into groups."""
        rows = self.train
        lengths_N, targets_N = (
            np.array([len(row) for row in rows.inputs]),
            np.array(rows.targets(self.labels), np.int64),
        )
        clients = sorted(rows.by_client().values(), key=len, reverse=True)
        groups = []
        for places in np.array_split(np.arange(len(clients)), min(len(clients), _MOST_GROUPS)):
            found = np.concatenate([clients[place] for place in places])
            labels = np.bincount(targets_N[found], minlength=len(self.labels)).tolist() if len(targets_N) else []
            length = float(lengths_N[found].mean())
            groups.append(ClientGroup(clients=len(places), rows=len(found), labels=labels, length=length))
        unit = "characters" if isinstance(rows.inputs[0], str) else "steps"
        return Spread(labels=list(self.labels) if len(targets_N) else [], length_unit=unit, groups=groups)

    def examples(self, featurizer: Featurizer, store: Path | None = None) -> Mapping[ClientId, Examples]:
        """Return each client's training rows as numbers, in memory or in a store that is made at a path."""
        clients = self.train.by_client()
        if store:
            encoded = (
                (name, self.train.take(clients[name]).encode(featurizer, self.labels)) for name in sorted(clients)
            )
            write_store(store, encoded)
            return ClientStore(store)
        everything = self.train.encode(featurizer, self.labels)
        return {client: everything.take(clients[client]) for client in sorted(clients)}


def read_population(
    options: PopulationOptions,
    seed: int,
    labels: Sequence[str] = (),
    features: FeatureOptions | None = None,
    *,
    labelled: bool = True,
) -> Population:
    """Read, partition and split the rows.

    Args:
        options: Where the rows are and who the clients are.
        seed: Seeds the partition and the split.
        labels: The labels that the model knows; rows with others get labels of their own.
        features: How the model prepares rows, if it is known.
        labelled: Whether the task needs labels.

    Raises:
        DataError: The rows can't be used, or there are fewer than two clients.
    """
    values = options.only(ValueColumns)

    def read(data: str) -> Rows:
        text, label = options.text, options.label if labelled else None
        column = None if "partition_column" in options.unread() else options.partition_column
        rows = read_rows(
            data, text=text, label=label, client=column or options.client, values=values, features=features
        )
        return replace(rows, clients=(), times=moments(rows.clients, data, column)) if column else rows

    rows = read(options.data)
    found = label_set(rows) if labelled else ()
    rows = choose(rows, options.rows, seed)
    test = read(options.test) if options.test else None
    if options.client is not None and len(set(rows.clients)) < 2:
        raise DataError(
            f"{options.data}: the column {options.client!r} holds one client only, {rows.clients[0]!r}; "
            "a federation needs at least two"
        )
    train, valid = hold_out(rows, options.valid, seed)
    if options.client is None:
        partitioner = made("headwater.partitioners", PARTITIONERS, options.partition, options)
        parts = [valid, *([test] if test else [])]
        train, valid, *dealt = deal(partitioner, train, parts, np.random.default_rng([seed, 0x0DEA]))
        test = dealt[0] if dealt else None
    if not len(valid) and not test:
        raise ConfigError(
            f"{options.data} has {len(rows)} rows, too few to hold {LEAST_HELD_OUT} of them out: raise --valid, or "
            "give --test"
        )
    return Population(train, valid, test or valid, "test" if test else "valid", _labels(labels, found))


def _labels(known: Sequence[str], found: tuple[str, ...]) -> tuple[str, ...]:
    """Return the labels that the model knows if the rows have no others, else those of the rows."""
    return tuple(known) if set(found) <= set(known) else found
