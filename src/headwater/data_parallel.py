"""The gradients of a training, in this process alone or in several that share each step's rows.

This process takes the first share, workers the others. The parameters lie in memory that the workers share, so they see
every update without being sent anything. Each leaves the gradient of its rows in a buffer of its own, and the buffers
are added in the order of the shares: the result is a function of the seed and the number of processes.

Shapes: B rows of a step.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import nn

from headwater.weights import Weights, weights_of
from headwater.workers import Workers, one_thread, shared_weights


@dataclass(frozen=True)
class Share:
    """One of the shares that a step's rows are dealt into.

    Attributes:
        number: Counted from 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    def of(self, rows_B: np.ndarray) -> np.ndarray:
        """Return its rows: dealt in turn, so that rows sorted by length make shares of about the same work."""
        return rows_B[self.number :: self.count]


@dataclass(frozen=True)
class _Task:
    """What a worker is asked.

    Attributes:
        step: Whose gradient.
        share: Of its rows.
        learning: For each parameter, whether it learns: what the parent freezes and thaws, a worker does not see.
    """

    step: int
    share: Share
    learning: tuple[bool, ...]


class DataParallel:
    """What works out the gradient of a step; in use as a context, which ends the workers.

    Args:
        trained: Has the parameters.
        gradient: Leaves the gradient of a share of a step's rows in the parameters, in place of what they held, and
            returns the share's part of the loss.
        processes: This one and its workers, with one thread each; a single one has as many as it has.
        seed: Of what the processes draw, if they are several; a single one draws on from where its generator stands.
    """

    def __init__(self, trained: nn.Module, gradient: Callable[[int, Share], float], processes: int, seed: int) -> None:
        self._trained = trained
        self._gradient = gradient
        self._processes = processes
        self._seed = seed
        self._parameters = dict(trained.named_parameters())
        self._workers: Workers | None = None
        self._buffers: list[Weights] = []

    def __enter__(self) -> Self:
        if self._processes > 1:
            weights = weights_of(self._trained)
            shared = shared_weights(weights)
            for name, parameter in self._parameters.items():
                parameter.data = shared[name].copy_(weights[name])
            self._buffers = [shared_weights(weights) for _ in range(1, self._processes)]
            self._workers = Workers(self._processes - 1, self._work)
        return self

    def __exit__(self, *error: object) -> None:
        if self._workers:
            self._workers.close()
            self._workers = None
            for parameter in self._parameters.values():  # a process forked later is to have weights of its own
                parameter.data = parameter.data.clone()
                parameter.grad = None

    def __call__(self, step: int) -> float:
        """Leave the gradient of a step in the parameters; return the loss.

        Raises:
            WorkerError: A worker process has died.
        """
        if not self._workers:
            return self._gradient(step, Share())
        own, *others = (Share(number, self._processes) for number in range(self._processes))
        learning = tuple(parameter.requires_grad for parameter in self._parameters.values())
        losses: list[float] = []

        def take_own() -> None:
            with one_thread():
                losses.append(self._share(step, own))

        tasks = [_Task(step, share, learning) for share in others]
        answers = dict(self._workers.answers(tasks, meanwhile=take_own))
        for number, buffer in enumerate(self._buffers):
            loss, filled = answers[number]
            losses.append(loss)
            for name in filled:
                parameter = self._parameters[name]
                parameter.grad = buffer[name] if parameter.grad is None else parameter.grad.add_(buffer[name])
        return sum(losses)

    def _share(self, step: int, share: Share) -> float:
        """Leave the gradient of a share in the parameters; return its part of the loss."""
        torch.default_generator.manual_seed(zlib.crc32(f"{self._seed}/{step}/{share.number}".encode()))
        return self._gradient(step, share)

    def _work(self, task: _Task) -> tuple[float, list[str]]:
        """Put the gradient of a share into its buffer; return its part of the loss and what there is."""
        for parameter, learns in zip(self._parameters.values(), task.learning, strict=True):
            parameter.requires_grad_(learns)
        loss = self._share(task.step, task.share)
        buffer = self._buffers[task.share.number - 1]
        gradients = {name: p.grad for name, p in self._parameters.items() if p.grad is not None}
        for name, value in gradients.items():
            buffer[name].copy_(value)
        return loss, list(gradients)
