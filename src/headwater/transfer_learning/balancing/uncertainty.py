"""Weights from homoscedastic uncertainty (Kendall, Gal and Cipolla 2018, arXiv:1705.07115).

Each task k has a noise of its own, sigma_k, that is learned with the model: a task that stays hard comes to count less.
Equation 10 for cross entropies is the sum of L_k / sigma_k^2 + log sigma_k. What is learned, for its stability (section
3.2), is the log variance s_k = log sigma_k^2:

    L = sum over k of exp(-s_k) L_k + s_k / 2
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from headwater.data_parallel import Share
from headwater.model import Encoder
from headwater.trainer import Objective
from headwater.transfer_learning.balancing.base import Balancer
from headwater.transfer_learning.task_options import TaskOptions


class Uncertainty(Balancer):
    """A task counts exp(-s_k); s_k begins where that is its given weight."""

    def __init__(self, weights: Sequence[float], encoder: Encoder, options: TaskOptions, seed: int) -> None:
        super().__init__(weights, encoder, options, seed)
        # One parameter a task: a task that a step leaves out has no gradient, and the optimizer leaves its own alone.
        self.learned.extend(nn.Parameter(torch.tensor(-math.log(weight))) for weight in weights)

    def objectives(self, tasks: Sequence[Objective]) -> Sequence[Objective]:
        """Return each task with its log variance."""
        return [_Uncertain(task, variance) for task, variance in zip(tasks, self.learned, strict=True)]

    def weights(self) -> Sequence[float]:
        """Return exp(-s_k) of each task."""
        return [math.exp(-float(variance.detach())) for variance in self.learned]


@dataclass
class _Uncertain(Objective):
    task: Objective
    log_variance: nn.Parameter

    def __post_init__(self) -> None:
        self.steps_per_epoch = self.task.steps_per_epoch

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        for loss in self.task.losses(step, share):
            yield torch.exp(-self.log_variance) * loss
        if share.number == 0:  # it has no rows to share
            yield self.log_variance / 2
