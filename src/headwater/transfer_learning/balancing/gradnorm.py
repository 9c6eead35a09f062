"""GradNorm: weights that make the tasks learn at like rates (Chen et al. 2018, arXiv:1711.02257).

Section 3, with W the last layer that the tasks share:

    G_k   = |grad_W w_k L_k|                      the size of what task k asks of W
    r_k   = (L_k / L_k(0)) / mean over tasks      its inverse training rate: above 1 where it is slow
    goal  = mean(G) r_k^alpha                     held constant
    L_grad = sum over k of |G_k - goal_k|         descended along by the weights alone

Shapes: T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from headwater.data_parallel import Share
from headwater.model import Encoder
from headwater.trainer import Objective
from headwater.transfer_learning.balancing.base import Balancer, Weighted, add_gradient, apart
from headwater.transfer_learning.task_options import TaskOptions

_RATE = 0.025
"""The learning rate of the weights."""
_LEAST = 1e-3
"""Of a weight, as a step of the paper could make it negative and its task unlearn; of a first loss and of its rest."""


class GradNorm(Balancer, Objective):
    """The weights add up to the number of tasks; they are updated after each step."""

    whole_gradients = True

    def __init__(self, weights: Sequence[float], encoder: Encoder, options: TaskOptions, seed: int) -> None:
        super().__init__(weights, encoder, options, seed)
        self._weights_T = _adding_up(torch.tensor(weights))
        self._first_T = torch.ones(len(weights))

    def objectives(self, tasks: Sequence[Objective]) -> Sequence[Objective]:
        """Return the one objective of all tasks."""
        self._tasks = tasks
        self.steps_per_epoch = tasks[0].steps_per_epoch
        return [self]

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the weighted losses, then update the weights by the gradients that they have left."""
        if step == 0:  # the learning-rate finder has been here before
            self._weights_T.copy_(_adding_up(torch.tensor(self.start)))
        shared = [value for value in self.encoder.stack.layers[-1].parameters() if value.requires_grad]
        losses, norms = [], []
        for task, weight in zip(self._tasks, self.weights(), strict=True):
            loss, gradient = yield from apart(Weighted(task, weight), step, share, shared)
            add_gradient(shared, gradient)
            losses.append(loss / weight)
            norms.append(sum(float(value.square().sum()) for value in gradient) ** 0.5)
        self._update(step, torch.tensor(losses), torch.tensor(norms))

    def _update(self, step: int, losses_T: Tensor, norms_T: Tensor) -> None:
        if step == 0:
            self._first_T.copy_(losses_T.clamp(min=_LEAST))
        rates_T = (losses_T / self._first_T).clamp(min=_LEAST)
        goals_T = norms_T.mean() * (rates_T / rates_T.mean()) ** self.options.gradnorm_alpha
        # G_k is w_k times what doesn't depend on w_k: the slope of |G_k - goal_k| is that, or its negative.
        slopes_T = (norms_T - goals_T).sign() * norms_T / self._weights_T
        self._weights_T.copy_(_adding_up((self._weights_T - _RATE * slopes_T).clamp(min=_LEAST)))

    def weights(self) -> Sequence[float]:
        """Return w_k of each task."""
        return [float(weight) for weight in self._weights_T]

    def carried(self) -> dict[str, Tensor]:
        """Return the weights and the first losses, (T,) each."""
        return {"weights": self._weights_T, "first": self._first_T}


def _adding_up(weights_T: Tensor) -> Tensor:
    """Return the weights times what makes them add up to the number of tasks."""
    return weights_T * (len(weights_T) / weights_T.sum())
