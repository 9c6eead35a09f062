"""The pieces that a federated algorithm is put together from, and the plain data between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from headwater.data.examples import Examples
from headwater.weights import Weights, part

ClientId = str


@dataclass(frozen=True)
class Instruction:
    """What the server asks of every client of a round.

    Attributes:
        round: Counted from 1.
        weights: The shared weights that clients train and send back.
        seed: Of the run; clients derive their own from it, the round and their name.
        extra: What a method sends beside the weights, such as SCAFFOLD's control variate, under ``method/name``.
        encoded: What is sent in place of both, where a codec has encoded them; they are what comes out of it then.
    """

    round: int
    weights: Weights
    seed: int
    extra: Weights = field(default_factory=dict)
    encoded: Weights = field(default_factory=dict)


@dataclass
class Client:
    """A client, as it sees itself.

    Attributes:
        name: Who.
        examples: Its training rows.
        state: What it keeps between rounds, by names of the piece that keeps it; it never leaves home. Whoever works
            for the client puts new tensors in place of old ones and changes none.
        work: Share of a round's steps that it has time for, above 0 and up to 1.
    """

    name: ClientId
    examples: Examples
    state: Weights = field(default_factory=dict)
    work: float = 1.0


@dataclass(frozen=True)
class Update:
    """What a client answers.

    Attributes:
        client: Who.
        delta: Its weights less the instruction's; and what a transform or a method adds, under ``method/name``.
        rows: Training rows it has used.
        metrics: Its own figures, such as the training loss.
    """

    client: ClientId
    delta: Weights
    rows: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class ClientUpdate(Protocol):
    """The client's half of a method: from the shared weights to an update, on the client's rows only."""

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train; what the client is to remember goes into its `state`."""


@runtime_checkable
class UpdateTransform(Protocol):
    """A change to updates, such as clipping and noise, or a codec: a derived class overrides the moments it needs.

    What it keeps on the server goes through `state` and `restore`; what it keeps on a client, into `Client.state`.
    """

    decodes: ClassVar[bool] = False
    """Whether `on_receive` takes in tensors of names, types and shapes of its own, which it must check itself. Those
    before it in the order of the transforms are given tensors of `expected`, or some of them."""

    def on_instruct(self, instruction: Instruction) -> Instruction:
        """Change the instruction before the server sends it, once a round."""
        return instruction

    def on_client(self, update: Update, instruction: Instruction, client: Client) -> Update:
        """Change the update before it leaves the client."""
        del instruction, client
        return update

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Change it back as the server takes it in, once a client; called in the reverse order of the transforms.

        Raises:
            ValueError: It isn't what `on_client` makes.
        """
        del instruction
        return update

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Change the aggregate of so many replies; called in the reverse order of the transforms."""
        del instruction, replies
        return aggregate

    def added(self, weights: Weights) -> Weights:
        """Return zeros of the shapes of what updates to `weights` have more than those, as they are aggregated."""
        del weights
        return {}

    def state(self) -> Weights:
        """Return what the server's next round depends on."""
        return {}

    def restore(self, state: Weights) -> None:
        """Take up a saved state."""
        del state


def expected(weights: Weights, transforms: Sequence[UpdateTransform]) -> Weights:
    """Return tensors of the names and shapes that updates have when they are aggregated."""
    like = dict(weights)
    for transform in transforms:
        like |= transform.added(weights)
    return like


class Aggregator(Protocol):
    """Many updates to one direction. One that is a weighted sum is an `Average` too, and can be made in parts.

    One that changes updates as they are received, or keeps something between rounds, is an `UpdateTransform` too.
    """

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates, which come in the order of the clients' names; `like` gives the shapes if there are none."""


@runtime_checkable
class Average(Protocol):
    """An aggregator that is a weighted sum of the updates, made of lanes (see `aggregators`)."""

    @property
    def one_by_one(self) -> bool:
        """Whether it wants the updates themselves, for what it does with them beside adding them up."""

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


@dataclass
class Replies:
    """Who answered in a round, and who didn't.

    Attributes:
        metrics: The figures of those whose updates were taken in, by their names.
        absent: Why, by the names of those who didn't answer in time.
        refused: Why, by the names of those whose answer couldn't be used.
        time: How long it took, where time is simulated.
    """

    metrics: dict[ClientId, Mapping[str, float]] = field(default_factory=dict)
    absent: dict[ClientId, str] = field(default_factory=dict)
    refused: dict[ClientId, str] = field(default_factory=dict)
    time: float = 0.0

    @property
    def failed(self) -> dict[ClientId, str]:
        """Why, by the sorted names of those without an update."""
        return dict(sorted((self.absent | self.refused).items()))


class Cohort(Protocol):
    """The one boundary to the world: clients in this process, or on real devices."""

    bytes_down: int
    """Bytes sent to clients so far."""
    bytes_up: int
    """Bytes received from clients so far."""
    replies: Replies
    """Of the last round, whole when all its updates have been taken."""

    def clients(self) -> Sequence[ClientId]:
        """Return all clients in sorted order."""

    def gather(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform]
    ) -> Iterator[Update]:
        """Yield the clients' updates as they came over the wire, in the order of `clients`; who fails is left out."""


@runtime_checkable
class AveragingCohort(Protocol):
    """A cohort that can add up its clients' updates where they are made."""

    def average(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform], by: Average
    ) -> Weights:
        """Return the average of the clients' updates: the same bits as from `gather`, if no answer is refused."""


@dataclass(frozen=True, kw_only=True)
class FederatedAlgorithm:
    """A method of federated learning, put together.

    An aggregator that is a transform too stands first among them: it receives what all others have undone.
    """

    transforms: Sequence[UpdateTransform] = ()
    aggregator: Aggregator
    server_optimizer: ServerOptimizer
    sampler: Sampler

    def __post_init__(self) -> None:
        """Let the aggregator be a transform."""
        own = self.aggregator
        if isinstance(own, UpdateTransform) and not any(transform is own for transform in self.transforms):
            object.__setattr__(self, "transforms", (own, *self.transforms))

    def state(self) -> Weights:
        """Return what the pieces keep on the server between rounds."""
        return {f"{place}/{name}": value for place, piece in self._pieces() for name, value in piece.state().items()}

    def restore(self, state: Weights) -> None:
        """Take up a saved state."""
        for place, piece in self._pieces():
            piece.restore(part(state, f"{place}/"))

    def _pieces(self) -> Iterator[tuple[str, ServerOptimizer | UpdateTransform]]:
        yield "optimizer", self.server_optimizer
        for number, transform in enumerate(self.transforms):
            yield f"transform{number}", transform
