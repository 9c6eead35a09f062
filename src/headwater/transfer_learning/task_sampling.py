"""One task a step, drawn by temperature (Arivazhagan et al. 2019, arXiv:1907.05019, section 3.2).

Shapes: T tasks, S steps of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from headwater.data_parallel import Share
from headwater.trainer import Objective

_DRAWS = 0x7E39
"""Tells the draws' generator from others of the same seed."""


class Draws:
    """Which task a step learns, a pure function of the seed and the step.

    A task's chance is in proportion to rows^(1 / temperature). An epoch draws without putting back, from as many steps
    of each task as its chance is worth beside the target's: the target's rows are gone through once.

    Args:
        rows: Of each task, the target's first.
        steps: Of the target's task in an epoch.
        temperature: 1 or more.
        seed: Fixes all draws.
    """

    def __init__(self, rows: Sequence[int], steps: int, temperature: float, seed: int) -> None:
        odds_T = (np.array(rows) / rows[0]) ** (1 / temperature)
        self.counts_T = np.rint(odds_T * steps).astype(np.int64).clip(min=1)
        self.steps_per_epoch = int(self.counts_T.sum())
        self._seed = seed
        self._epoch = lru_cache(maxsize=1)(self._draw_epoch)

    def at(self, step: int) -> tuple[int, int]:
        """Return the number of a step's task, and how many steps that task has had before."""
        epoch, position = divmod(step, self.steps_per_epoch)
        tasks_S, before_S = self._epoch(epoch)
        task = int(tasks_S[position])
        return task, epoch * int(self.counts_T[task]) + int(before_S[position])

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, _DRAWS, epoch])
        tasks_S = rng.permutation(np.repeat(np.arange(len(self.counts_T)), self.counts_T))
        before_S = np.empty_like(tasks_S)
        for task, count in enumerate(self.counts_T):
            before_S[tasks_S == task] = np.arange(count)
        return tasks_S, before_S


@dataclass
class Drawn(Objective):
    """An objective that learns in the steps that draw its task."""

    objective: Objective
    draws: Draws
    task: int

    def __post_init__(self) -> None:
        """An epoch is that of the draws."""
        self.steps_per_epoch = self.draws.steps_per_epoch

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the parts of the loss if the task has been drawn."""
        task, own_step = self.draws.at(step)
        if task == self.task:
            yield from self.objective.losses(own_step, share)
