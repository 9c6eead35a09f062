"""Clients on this machine: each works on its own rows only, and all it sends is its update."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self
from uuid import uuid4

from headwater.data.examples import Examples
from headwater.errors import FederationError
from headwater.federated.aggregators import LANES
from headwater.federated.protocols import (
    Average,
    Client,
    ClientId,
    ClientUpdate,
    Instruction,
    Replies,
    Update,
    UpdateTransform,
    expected,
)
from headwater.federated.states import ClientStates
from headwater.federated.wire import Wire, received
from headwater.weights import Weights, add_to, zeros_like
from headwater.workers import Workers, one_thread, shared_weights


@dataclass(frozen=True)
class Plan:
    """What becomes of the clients that a round has asked.

    Attributes:
        work: Share of its steps that each does whose answer the server takes, in the order in which they were asked.
        absent: Why there is no answer of the others.
        time: How long the round takes, in times of the median client.
    """

    work: Mapping[ClientId, float]
    absent: Mapping[ClientId, str] = field(default_factory=dict)
    time: float = 0.0


class Conditions(Protocol):
    """The simulated world: who is slow, who is away, when the server closes a round."""

    def plan(self, round_number: int, clients: Sequence[ClientId]) -> Plan:
        """Return what becomes of the clients: a pure function of its arguments."""


class Ideal(Conditions):
    """All answer."""

    def plan(self, round_number: int, clients: Sequence[ClientId]) -> Plan:
        """Return that all do all their work."""
        del round_number
        return Plan(dict.fromkeys(clients, 1.0))


@dataclass(frozen=True)
class _Task:
    """What a worker process is asked: the weights are in shared memory.

    Attributes:
        round: Of the instruction.
        seed: Of the instruction.
        work: Whom to run, and what share of the steps each does.
        lane: Where to put the weighted sum of their updates; None to answer with the update's bytes.
    """

    round: int
    seed: int
    work: Mapping[ClientId, float]
    lane: int | None


@dataclass
class _Sum:
    """What a lane's clients have answered, beside the weighted sum of their updates."""

    weights: float = 0.0
    size: int = 0
    replies: Replies = field(default_factory=Replies)


class LocalCohort:
    """A simulated population.

    Args:
        data: Each client's training rows; any mapping, such as a client store's that reads them from disk.
        client_update: What a client does. It and the transforms are to be functions of their arguments alone: with
            several processes they run in copies of this process made at the first round, where what they change in
            themselves stays, and where no later change arrives. What a client is to remember goes into its state.
        processes: Worker processes, one thread each; with 1 the clients run in this process.
        states: Where clients keep what they remember; a temporary folder if it isn't said, gone at the end.
        conditions: Who is slow and who is away.
        wire: How messages are written.
    """

    def __init__(
        self,
        data: Mapping[ClientId, Examples],
        client_update: ClientUpdate,
        *,
        processes: int = 1,
        states: Path | None = None,
        conditions: Conditions | None = None,
        wire: Wire | None = None,
    ) -> None:
        if processes < 1:
            raise ValueError(f"{processes} processes: a cohort needs one at least")
        self._data = data
        self._client_update = client_update
        self._processes = min(processes, LANES, len(data))
        if states is None:
            states = Path(tempfile.gettempdir()) / f"headwater-{uuid4().hex}"  # made when a client keeps something
            weakref.finalize(self, shutil.rmtree, states, ignore_errors=True)
        self._states = ClientStates(states)
        self._conditions = conditions or Ideal()
        self._wire = wire or Wire()
        self._workers: Workers | None = None
        self._pieces: tuple[object, ...] = ()
        self._sent: Weights = {}
        self._lanes: list[Weights] = []
        self.bytes_down = 0
        self.bytes_up = 0
        self.replies = Replies()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes; the next round would start new ones."""
        if self._workers:
            self._workers.close()
        self._workers, self._sent, self._lanes = None, {}, []

    def clients(self) -> Sequence[ClientId]:
        """Return all clients in sorted order."""
        ordered = getattr(self._data, "clients", None)  # a store of millions knows them in order
        return ordered if ordered is not None else sorted(self._data)

    def client(self, name: ClientId) -> Client:
        """Return a client as it is between two rounds, with what it has kept from those so far."""
        return Client(name, self._data[name], self._states.read(name))

    def gather(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform]
    ) -> Iterator[Update]:
        """Yield the clients' updates as they came over the wire, in the order of `clients`; who fails is left out."""
        plan = self._begin(instruction, clients)
        like = expected(instruction.weights, transforms)
        for client, message in zip(plan.work, self._messages(instruction, plan, transforms), strict=True):
            self.bytes_up += len(message)
            try:
                update = self._wire.unpack_update(message, client=client, instruction=instruction, like=like)
                with one_thread():
                    update = received(update, instruction, transforms, like)
            except FederationError as error:
                self.replies.refused[client] = error.reason
                continue
            self.replies.metrics[client] = update.metrics
            yield update

    def average(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform], by: Average
    ) -> Weights:
        """Return the average of the clients' updates; each lane is added up where its clients run."""
        plan = self._begin(instruction, clients)
        like = expected(instruction.weights, transforms)
        answering = list(plan.work)
        if not answering:
            return by.of_lanes((), like)
        lanes = [answering[number::LANES] for number in range(min(LANES, len(answering)))]
        return by.of_lanes(self._lane_sums(instruction, plan, lanes, transforms, by), like)

    def _begin(self, instruction: Instruction, clients: Sequence[ClientId]) -> Plan:
        plan = self._conditions.plan(instruction.round, clients)
        self.bytes_down += len(clients) * self._wire.instruction_size(instruction)
        self.replies = Replies(absent=dict(plan.absent), time=plan.time)
        return plan

    def _messages(self, instruction: Instruction, plan: Plan, transforms: Sequence[UpdateTransform]) -> Iterator[bytes]:
        if self._processes == 1:
            for client, work in plan.work.items():
                yield self._wire.pack_update(self._update(instruction, client, work, transforms))
            return
        early: dict[int, bytes] = {}
        awaited = 0
        tasks = [_Task(instruction.round, instruction.seed, {c: work}, None) for c, work in plan.work.items()]
        for number, message in self._ready(instruction, transforms, None).answers(tasks):
            early[number] = message
            while awaited in early:
                yield early.pop(awaited)
                awaited += 1

    def _lane_sums(
        self,
        instruction: Instruction,
        plan: Plan,
        lanes: Sequence[Sequence[ClientId]],
        transforms: Sequence[UpdateTransform],
        by: Average,
    ) -> Iterator[tuple[Weights, float]]:
        """Yield each lane's sum of weighted updates and sum of weights, in the order of the lanes."""
        works = [{client: plan.work[client] for client in lane} for lane in lanes]
        if self._processes == 1:
            total = zeros_like(expected(instruction.weights, transforms))
            for work in works:
                yield total, self._noted(self._add_up(instruction, work, transforms, by, total))
            return
        tasks = [_Task(instruction.round, instruction.seed, work, number) for number, work in enumerate(works)]
        # The longest first, so that no core waits for a long one at the end (Graham 1969).
        tasks.sort(key=lambda task: -sum(w * len(self._data[client].inputs) for client, w in task.work.items()))
        workers = self._ready(instruction, transforms, by)
        answers: dict[int | None, _Sum] = {tasks[place].lane: answer for place, answer in workers.answers(tasks)}
        for number in range(len(lanes)):
            yield self._lanes[number], self._noted(answers[number])

    def _noted(self, answer: _Sum) -> float:
        self.bytes_up += answer.size
        self.replies.metrics |= answer.replies.metrics
        self.replies.refused |= answer.replies.refused
        return answer.weights

    def _add_up(
        self,
        instruction: Instruction,
        clients: Mapping[ClientId, float],
        transforms: Sequence[UpdateTransform],
        by: Average,
        total: Weights,
    ) -> _Sum:
        """Put the clients' sum of weighted updates into `total`; return what else there is."""
        answer = _Sum()
        for value in total.values():
            value.zero_()
        for client, work in clients.items():
            update = self._update(instruction, client, work, transforms)
            # The bytes are counted, not made: what comes out of them is what went in.
            answer.size += self._wire.update_size(update)
            try:
                with one_thread():
                    update = received(update, instruction, transforms, total)
            except FederationError as error:
                answer.replies.refused[client] = error.reason
                continue
            answer.replies.metrics[client] = update.metrics
            weight = by.weight(update)
            add_to(total, update.delta, weight)
            answer.weights += weight
        return answer

    def _update(
        self, instruction: Instruction, name: ClientId, work: float, transforms: Sequence[UpdateTransform]
    ) -> Update:
        """Return what a client sends; one thread computes it, here as in a worker, since threads change bits."""
        kept = self._states.read(name, instruction.round)
        client = Client(name, self._data[name], dict(kept), work)
        with one_thread():
            update = self._client_update(instruction, client)
            for transform in transforms:
                update = transform.on_client(update, instruction, client)
        changed = client.state.keys() != kept.keys() or any(client.state[key] is not kept[key] for key in kept)
        # A client whose training has diverged goes on from what it kept before.
        if changed and all(bool(value.isfinite().all()) for value in client.state.values()):
            self._states.write(name, instruction.round, client.state)
        return update

    def _ready(self, instruction: Instruction, transforms: Sequence[UpdateTransform], by: Average | None) -> Workers:
        """Return workers that know the pieces, with the instruction's tensors in shared memory."""
        pieces = (*transforms, by)
        tensors = instruction.weights | instruction.extra
        if {name: value.shape for name, value in tensors.items()} != {
            name: value.shape for name, value in self._sent.items()
        }:
            self.close()
        if self._workers is None or not self._workers.alive or not _same(pieces, self._pieces):
            self.close()
            self._pieces = pieces
            self._sent = shared_weights(tensors)
            like = expected(instruction.weights, transforms)
            self._lanes = [shared_weights(like) for _ in range(LANES if by else 0)]
            weights = {name: self._sent[name] for name in instruction.weights}
            extra = {name: self._sent[name] for name in instruction.extra}

            def work(task: _Task) -> bytes | _Sum:
                order = Instruction(task.round, weights, task.seed, extra)
                if task.lane is None:
                    ((client, share),) = task.work.items()
                    return self._wire.pack_update(self._update(order, client, share, transforms))
                assert by is not None  # noqa: S101 - lanes are for averages
                return self._add_up(order, task.work, transforms, by, self._lanes[task.lane])

            self._workers = Workers(self._processes, work)
        for name, value in tensors.items():
            self._sent[name].copy_(value)
        return self._workers


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
