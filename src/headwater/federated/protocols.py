"""The pieces that a federated algorithm is put together from, and the plain data between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from headwater.data.examples import Examples
from headwater.weights import Weights

ClientId = str


@dataclass(frozen=True)
class Instruction:
    """What the server asks of every client of a round.

    Attributes:
        round: Counted from 1.
        weights: The shared weights that clients train and send back.
        seed: Of the run; clients derive their own from it, the round and their name.
    """

    round: int
    weights: Weights
    seed: int


@dataclass(frozen=True)
class Update:
    """What a client answers.

    Attributes:
        client: Who.
        delta: Its weights less the instruction's.
        rows: Training rows it has used.
        metrics: Its own figures, such as the training loss.
    """

    client: ClientId
    delta: Weights
    rows: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class ClientUpdate(Protocol):
    """The client's half of a method: from the shared weights to an update, on the client's rows only."""

    def __call__(self, instruction: Instruction, client: ClientId, examples: Examples) -> Update:
        """Train."""


class UpdateTransform(Protocol):
    """A change to updates, such as clipping and noise, or a codec, in three moments."""

    def on_client(self, update: Update, instruction: Instruction) -> Update:
        """Change the update before it leaves the client."""

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Change it back as the server takes it in, once a client."""

    def on_aggregate(self, aggregate: Weights, instruction: Instruction) -> Weights:
        """Change the aggregate; called in the reverse order of the transforms."""


class Aggregator(Protocol):
    """Many updates to one direction. One that is a weighted sum is an `Average` too, and can be made in parts."""

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates, which come in the order of the clients' names; `like` gives the shapes if there are none."""


@runtime_checkable
class Average(Protocol):
    """An aggregator that is a weighted sum of the updates, made of lanes (see `aggregators`)."""

    def weight(self, update: Update) -> float:
        """Return what an update counts."""

    def of_lanes(self, lanes: Iterable[tuple[Weights, float]], like: Weights) -> Weights:
        """Return the average from each lane's sum of weighted updates and sum of weights."""


class ServerOptimizer(Protocol):
    """The server's half of a method: weights and a direction to new weights. Its state can be saved."""

    def step(self, weights: Weights, direction: Weights) -> Weights:
        """Return the next weights."""

    def state(self) -> Weights:
        """Return what the next step depends on."""

    def restore(self, state: Weights) -> None:
        """Take up a saved state."""


class Sampler(Protocol):
    """Who takes part in a round: a pure function of the round."""

    def sample(self, round_number: int, clients: Sequence[ClientId]) -> list[ClientId]:
        """Return the round's clients, in the order of `clients`."""


class Cohort(Protocol):
    """The one boundary to the world: clients in this process, or on real devices."""

    bytes_down: int
    """Bytes sent to clients so far."""
    bytes_up: int
    """Bytes received from clients so far."""

    def clients(self) -> Sequence[ClientId]:
        """Return all clients in sorted order."""

    def gather(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform]
    ) -> Iterator[Update]:
        """Yield the clients' updates as they came over the wire, in the order of `clients`."""


@runtime_checkable
class AveragingCohort(Protocol):
    """A cohort that can add up its clients' updates where they are made."""

    def average(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform], by: Average
    ) -> Weights:
        """Return the average of the clients' updates: the same bits as from `gather`."""


@dataclass(frozen=True, kw_only=True)
class FederatedAlgorithm:
    """A method of federated learning, put together."""

    client_update: ClientUpdate
    transforms: Sequence[UpdateTransform] = ()
    aggregator: Aggregator
    server_optimizer: ServerOptimizer
    sampler: Sampler
