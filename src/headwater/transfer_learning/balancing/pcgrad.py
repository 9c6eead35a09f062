"""PCGrad: gradient surgery (Yu et al. 2020, arXiv:2001.06782).

Two tasks conflict where the inner product of their gradients with respect to the shared weights is negative. By
Algorithm 1 each task's gradient is projected onto the normal plane of each other one's that it conflicts with, in a
random order; the sum of what is left is the step's gradient. The heads' gradients are their tasks' own.

Shapes: T tasks, P shared parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from headwater.data_parallel import Share
from headwater.model import Encoder
from headwater.trainer import Objective
from headwater.transfer_learning.balancing.base import Balancer, Weighted, add_gradient, apart
from headwater.transfer_learning.task_options import TaskOptions

_ORDERS = 0x9C6D
"""Tells the orders' generator from others of the same seed."""


class PCGrad(Balancer, Objective):
    """The weighted tasks, without what is in conflict."""

    whole_gradients = True

    def __init__(self, weights: Sequence[float], encoder: Encoder, options: TaskOptions, seed: int) -> None:
        super().__init__(weights, encoder, options, seed)
        self._seen = torch.zeros(2, dtype=torch.int64)  # pairs in conflict, and pairs in all

    def objectives(self, tasks: Sequence[Objective]) -> Sequence[Objective]:
        """Return the one objective of all tasks."""
        self._tasks = [Weighted(task, weight) for task, weight in zip(tasks, self.start, strict=True)]
        self.steps_per_epoch = tasks[0].steps_per_epoch
        return [self]

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the weighted losses, then put the projected gradients in the place of those that they have left."""
        shared = [value for value in self.encoder.parameters() if value.requires_grad]
        gradients = []
        for task in self._tasks:
            _, gradient = yield from apart(task, step, share, shared)
            gradients.append(gradient)
        if step == 0:  # the learning-rate finder has been here before
            self._seen.zero_()
        if shared:  # layers may be frozen
            add_gradient(shared, self._projected(gradients, step))

    def _projected(self, gradients: Sequence[Sequence[Tensor]], step: int) -> list[Tensor]:
        gradients_TP = torch.stack([torch.cat([value.flatten() for value in gradient]) for gradient in gradients])
        products_TT = inner_products(gradients_TP)
        self._seen += torch.tensor(conflicts(products_TT))
        counts_T = surgery(products_TT, np.random.default_rng([self.seed, _ORDERS, step]))
        whole_P = (torch.from_numpy(counts_T).to(gradients_TP).unsqueeze(1) * gradients_TP).sum(0)
        parts = torch.split(whole_P, [value.numel() for value in gradients[0]])
        return [part.view_as(value) for part, value in zip(parts, gradients[0], strict=True)]

    def notes(self, names: Sequence[str]) -> list[str]:
        """Return the weights, and how often the gradients were in conflict."""
        conflicting, pairs = self._seen.tolist()
        share = conflicting / max(1, pairs)
        return [*super().notes(names), f"{share:.1%} of {pairs:,} pairs of the tasks' gradients were in conflict."]

    def carried(self) -> dict[str, Tensor]:
        """Return the numbers of pairs in conflict and in all, (2,)."""
        return {"seen": self._seen}


def inner_products(gradients_TP: Tensor) -> np.ndarray:
    """Return the inner product of each pair of gradients, (T, T)."""
    with torch.autocast(gradients_TP.device.type, enabled=False):  # bfloat16 could turn the sign of a small one
        products: np.ndarray = (gradients_TP @ gradients_TP.T).double().cpu().numpy()
    return products


def conflicts(products_TT: np.ndarray) -> tuple[int, int]:
    """Return how many pairs of gradients have a negative inner product, and how many pairs there are."""
    above = np.triu_indices(len(products_TT), 1)
    return int((products_TT[above] < 0).sum()), len(above[0])


def surgery(products_TT: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return how often each task's gradient counts in the sum of the projected ones, (T,); `rng` draws the orders.

    A projected gradient is a combination of the tasks' gradients, so their inner products tell all that is needed.
    """
    combinations_TT = np.eye(len(products_TT))
    for i, combination_T in enumerate(combinations_TT):
        for j in rng.permutation(len(products_TT)):
            inner = combination_T @ products_TT[j]
            if j != i and inner < 0:
                combination_T[j] -= inner / products_TT[j, j]
    counts_T: np.ndarray = combinations_TT.sum(0)
    return counts_T
