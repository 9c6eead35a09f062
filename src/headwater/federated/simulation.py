"""Clients on this machine: each works on its own rows only, and all it sends is its update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from headwater.data.examples import Examples
from headwater.federated.aggregators import LANES
from headwater.federated.protocols import Average, ClientId, ClientUpdate, Instruction, Update, UpdateTransform
from headwater.federated.wire import (
    check_update,
    instruction_size,
    pack_update,
    unpack_update,
    update_size,
)
from headwater.weights import Weights, add_to, zeros_like
from headwater.workers import Workers, one_thread, shared_weights


@dataclass(frozen=True)
class _Task:
    """What a worker process is asked: the weights are in shared memory.

    Attributes:
        round: Of the instruction.
        seed: Of the instruction.
        clients: Whom to run.
        lane: Where to put the weighted sum of their updates; None to answer with the updates' bytes.
    """

    round: int
    seed: int
    clients: Sequence[ClientId]
    lane: int | None


class LocalCohort:
    """A simulated population.

    Args:
        data: Each client's training rows.
        client_update: What a client does. It and the transforms are to be functions of their arguments alone: with
            several processes they run in copies of this process made at the first round, where what they change in
            themselves stays, and where no later change arrives.
        processes: Worker processes, one thread each; with 1 the clients run in this process.
    """

    def __init__(self, data: Mapping[ClientId, Examples], client_update: ClientUpdate, *, processes: int = 1) -> None:
        if processes < 1:
            raise ValueError(f"{processes} processes: a cohort needs one at least")
        self._data = data
        self._client_update = client_update
        self._processes = min(processes, LANES, len(data))
        self._workers: Workers | None = None
        self._pieces: tuple[object, ...] = ()
        self._sent: Weights = {}
        self._lanes: list[Weights] = []
        self.bytes_down = 0
        self.bytes_up = 0

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
        return sorted(self._data)

    def gather(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform]
    ) -> Iterator[Update]:
        """Yield the clients' updates as they came over the wire, in the order of `clients`."""
        self.bytes_down += len(clients) * instruction_size(instruction)
        for client, message in zip(clients, self._messages(instruction, clients, transforms), strict=True):
            self.bytes_up += len(message)
            yield _received(unpack_update(message, client=client, instruction=instruction), instruction, transforms)

    def average(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform], by: Average
    ) -> Weights:
        """Return the average of the clients' updates; each lane is added up where its clients run."""
        self.bytes_down += len(clients) * instruction_size(instruction)
        if not clients:
            return by.of_lanes((), instruction.weights)
        lanes = [clients[number::LANES] for number in range(min(LANES, len(clients)))]
        return by.of_lanes(self._lane_sums(instruction, lanes, transforms, by), instruction.weights)

    def _messages(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform]
    ) -> Iterator[bytes]:
        if self._processes == 1:
            for client in clients:
                yield pack_update(self._update(instruction, client, transforms))
            return
        early: dict[int, bytes] = {}
        expected = 0
        tasks = [_Task(instruction.round, instruction.seed, (client,), None) for client in clients]
        for number, message in self._ready(instruction, transforms, None).answers(tasks):
            early[number] = message
            while expected in early:
                yield early.pop(expected)
                expected += 1

    def _lane_sums(
        self,
        instruction: Instruction,
        lanes: Sequence[Sequence[ClientId]],
        transforms: Sequence[UpdateTransform],
        by: Average,
    ) -> Iterator[tuple[Weights, float]]:
        """Yield each lane's sum of weighted updates and sum of weights, in the order of the lanes."""
        if self._processes == 1:
            lane_total = zeros_like(instruction.weights)
            for lane in lanes:
                weights, size = self._add_up(instruction, lane, transforms, by, lane_total)
                self.bytes_up += size
                yield lane_total, weights
            return
        tasks = [_Task(instruction.round, instruction.seed, lane, number) for number, lane in enumerate(lanes)]
        # The longest first, so that no core waits for a long one at the end (Graham 1969).
        tasks.sort(key=lambda task: -sum(len(self._data[client].inputs) for client in task.clients))
        workers = self._ready(instruction, transforms, by)
        answers = {tasks[place].lane: answer for place, answer in workers.answers(tasks)}
        for number in range(len(lanes)):
            weights, size = answers[number]
            self.bytes_up += size
            yield self._lanes[number], weights

    def _add_up(
        self,
        instruction: Instruction,
        clients: Sequence[ClientId],
        transforms: Sequence[UpdateTransform],
        by: Average,
        total: Weights,
    ) -> tuple[float, int]:
        """Put the clients' sum of weighted updates into `total`; return the sum of weights and the bytes."""
        weights, size = 0.0, 0
        for value in total.values():
            value.zero_()
        for client in clients:
            update = self._update(instruction, client, transforms)
            # The bytes are counted, not made: float32 comes out of them as it went in.
            check_update(update, client=client, instruction=instruction)
            size += update_size(update)
            update = _received(update, instruction, transforms)
            weight = by.weight(update)
            add_to(total, update.delta, weight)
            weights += weight
        return weights, size

    def _update(self, instruction: Instruction, client: ClientId, transforms: Sequence[UpdateTransform]) -> Update:
        """Return what a client sends; one thread computes it, here as in a worker, since threads change bits."""
        with one_thread():
            update = self._client_update(instruction, client, self._data[client])
        for transform in transforms:
            update = transform.on_client(update, instruction)
        return update

    def _ready(self, instruction: Instruction, transforms: Sequence[UpdateTransform], by: Average | None) -> Workers:
        """Return workers that know the pieces, with the instruction's weights in shared memory."""
        pieces = (*transforms, by)
        if {name: value.shape for name, value in instruction.weights.items()} != {
            name: value.shape for name, value in self._sent.items()
        }:
            self.close()
        if self._workers is None or not self._workers.alive or not _same(pieces, self._pieces):
            self.close()
            self._pieces = pieces
            self._sent = shared_weights(instruction.weights)
            self._lanes = [shared_weights(instruction.weights) for _ in range(LANES if by else 0)]

            def work(task: _Task) -> bytes | tuple[float, int]:
                order = Instruction(task.round, self._sent, task.seed)
                if task.lane is None:
                    return pack_update(self._update(order, task.clients[0], transforms))
                assert by is not None  # noqa: S101 - lanes are for averages
                return self._add_up(order, task.clients, transforms, by, self._lanes[task.lane])

            self._workers = Workers(self._processes, work)
        for name, value in instruction.weights.items():
            self._sent[name].copy_(value)
        return self._workers


def _received(update: Update, instruction: Instruction, transforms: Sequence[UpdateTransform]) -> Update:
    for transform in reversed(transforms):
        update = transform.on_receive(update, instruction)
    return update


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
