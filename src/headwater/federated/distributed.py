"""A round's clients over the processes that torchrun has started, on this machine or on many.

Rank 0 runs the stage: it alone evaluates, writes and shows. The others have read the same rows and wait for orders.
The lanes of an average are dealt to the ranks in turn; each adds up its own, and rank 0 adds the lanes in their order,
so any number of processes gives the same bits. What goes between the ranks are tensors and JSON, never pickle.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NoReturn

import safetensors.torch
import torch
import torch.distributed as dist

from headwater.errors import WorkerError
from headwater.federated.protocols import Average, ClientId, FederatedAlgorithm, Instruction, Replies, UpdateTransform
from headwater.federated.simulation import LocalCohort, Plan
from headwater.weights import Weights, part

_PATIENCE = timedelta(days=30)
"""A rank waits as long as rank 0 takes between two rounds; that another has died is known by its connection."""
_ENDED = (
    "another process that torchrun has started has ended, so this run can't go on: see what it said, then give the "
    "same command with --resume"
)


class Ranks:
    """The processes that torchrun has started, and messages between rank 0 and the others."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def send(self, to: int, facts: dict[str, Any], tensors: Weights | None = None) -> None:
        """Send a message.

        Raises:
            WorkerError: The other process has ended.
        """
        words = json.dumps(facts).encode()
        body = words + safetensors.torch.save({name: value.contiguous() for name, value in (tensors or {}).items()})
        with _died():
            dist.send(torch.tensor([len(words), len(body)]), to)
            dist.send(torch.frombuffer(bytearray(body), dtype=torch.uint8), to)

    def receive(self, sender: int) -> tuple[dict[str, Any], Weights]:
        """Return the next message.

        Raises:
            WorkerError: The other process has ended.
        """
        sizes = torch.zeros(2, dtype=torch.int64)
        with _died():
            dist.recv(sizes, sender)
            words, whole = sizes.tolist()
            body = torch.empty(whole, dtype=torch.uint8)
            dist.recv(body, sender)
        message = body.numpy().tobytes()
        return json.loads(message[:words]), safetensors.torch.load(message[words:])


@contextmanager
def joined() -> Iterator[Ranks | None]:
    """Join the other processes that torchrun has started; without it, and with a single one, there are none.

    When rank 0 leaves, the others are told to end, and whether it has failed.

    Raises:
        WorkerError: They can't reach each other, or one of them has ended before its time.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ.get("WORLD_SIZE", "1") == "1":
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    try:
        dist.init_process_group("gloo", timeout=_PATIENCE)
    except RuntimeError as error:
        raise WorkerError(
            f"the processes that torchrun has started can't reach each other ({error}): name the network that joins "
            "them in the environment variable GLOO_SOCKET_IFNAME"
        ) from error
    here = os.getpid()

    def terminated(number: int, frame: object) -> NoReturn:
        """Say why this process ends; torchrun ends those that it has forked too, and they say nothing."""
        del number, frame
        if os.getpid() != here:
            os._exit(1)
        raise WorkerError(_ENDED)

    before = signal.signal(signal.SIGTERM, terminated)
    ranks, failure = Ranks(), ""
    try:
        yield ranks
    except BaseException as error:
        failure = str(error) or type(error).__name__
        raise
    finally:
        if ranks.rank == 0:
            _dismiss(ranks, failure)
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


class DistributedCohort(LocalCohort):
    """A simulated population whose rounds are worked off by several processes.

    What clients keep lies in a folder that all processes see.

    Args:
        ranks: The processes.
        rows: What tells these training rows from others: all processes must have read the same.
        given: As `LocalCohort` takes it.
    """

    def __init__(self, ranks: Ranks, rows: str, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._ranks = ranks
        self._rows = rows

    def serve(self, algorithm: FederatedAlgorithm, ready: Callable[[], None]) -> None:
        """Work off what rank 0 orders, until it says that this is all.

        Args:
            algorithm: The same as there.
            ready: Called with each order; raises if this process can't follow it.

        Raises:
            WorkerError: Rank 0 has failed, or has other rows.
        """
        while True:
            order, tensors = self._ranks.receive(0)
            if "end" in order:
                if order["end"]:
                    raise WorkerError(f"the first process that torchrun has started has failed: {order['end']}")
                return
            ready()
            if order["rows"] != self._rows:
                raise WorkerError("--data holds other rows here than it does for the first process: copy the file")
            instruction = Instruction(order["round"], part(tensors, "weights/"), order["seed"], part(tensors, "extra/"))
            self.replies, self.bytes_up = Replies(), 0
            if order["sums"]:
                assert isinstance(algorithm.aggregator, Average)  # noqa: S101 - rank 0 has the same one
                self._answer_sums(instruction, order["works"], algorithm.transforms, algorithm.aggregator)
            else:
                self._answer_messages(instruction, order["works"], algorithm.transforms)

    def _answer_sums(
        self, instruction: Instruction, works: _Works, transforms: Sequence[UpdateTransform], by: Average
    ) -> None:
        sums = super()._lane_sums(instruction, _planned(works), [list(work) for work in works], transforms, by)
        weights, tensors = _kept(sums)
        replies = asdict(self.replies)
        self._ranks.send(0, {"weights": weights, "replies": replies, "bytes_up": self.bytes_up}, tensors)

    def _answer_messages(self, instruction: Instruction, works: _Works, transforms: Sequence[UpdateTransform]) -> None:
        messages = super()._messages(instruction, _planned(works), transforms)
        self._ranks.send(0, {}, {str(n): _bytes(message) for n, message in enumerate(messages)})

    def _lane_sums(
        self,
        instruction: Instruction,
        plan: Plan,
        lanes: Sequence[Sequence[ClientId]],
        transforms: Sequence[UpdateTransform],
        by: Average,
    ) -> Iterator[tuple[Weights, float]]:
        """Yield each lane's sum of weighted updates and sum of weights, in the order of the lanes."""
        size = self._ranks.size
        self._order(instruction, [{client: plan.work[client] for client in lane} for lane in lanes], sums=True)
        weights, tensors = _kept(super()._lane_sums(instruction, plan, lanes[::size], transforms, by))
        answers = {0: (weights, tensors)}
        for other in range(1, min(size, len(lanes))):
            facts, tensors = self._ranks.receive(other)
            answers[other] = facts["weights"], tensors
            self.bytes_up += facts["bytes_up"]
            self.replies.metrics |= facts["replies"]["metrics"]
            self.replies.refused |= facts["replies"]["refused"]
        for number in range(len(lanes)):
            weights, tensors = answers[number % size]
            yield part(tensors, f"{number // size}/"), weights[number // size]

    def _messages(self, instruction: Instruction, plan: Plan, transforms: Sequence[UpdateTransform]) -> Iterator[bytes]:
        size = self._ranks.size
        works = [{client: work} for client, work in plan.work.items()]
        self._order(instruction, works, sums=False)
        answers = {0: list(super()._messages(instruction, _planned(works[::size]), transforms))}
        for other in range(1, min(size, len(works))):
            _, tensors = self._ranks.receive(other)
            answers[other] = [tensors[str(n)].numpy().tobytes() for n in range(len(tensors))]
        for number in range(len(works)):
            yield answers[number % size][number // size]

    def _order(self, instruction: Instruction, works: _Works, *, sums: bool) -> None:
        """Deal work to the ranks in turn; who has none hears nothing."""
        tensors = {f"weights/{name}": value for name, value in instruction.weights.items()}
        tensors |= {f"extra/{name}": value for name, value in instruction.extra.items()}
        facts = {"round": instruction.round, "seed": instruction.seed, "rows": self._rows, "sums": sums}
        size = self._ranks.size
        for other in range(1, min(size, len(works))):
            self._ranks.send(other, facts | {"works": works[other::size]}, tensors)


_Works = Sequence[dict[ClientId, float]]
"""Whom to run, and what share of the steps each does: for each lane, or one client each."""


def _planned(works: _Works) -> Plan:
    return Plan({client: share for work in works for client, share in work.items()})


def _kept(sums: Iterator[tuple[Weights, float]]) -> tuple[list[float], Weights]:
    """Return the sums of weights and copies of the weighted sums, by the lanes' numbers."""
    weights: list[float] = []
    tensors: Weights = {}
    for number, (total, weight) in enumerate(sums):
        weights.append(weight)
        tensors |= {f"{number}/{name}": value.clone() for name, value in total.items()}
    return weights, tensors


def _bytes(message: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(message), dtype=torch.uint8)


def _dismiss(ranks: Ranks, failure: str) -> None:
    for other in range(1, ranks.size):
        try:
            ranks.send(other, {"end": failure})
        except WorkerError:
            if not failure:
                raise


@contextmanager
def _died() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of gloo: the connection is closed
        raise WorkerError(_ENDED) from error
