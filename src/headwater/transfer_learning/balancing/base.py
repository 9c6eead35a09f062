"""What balances tasks, and how one of them is seen apart from the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from headwater.data_parallel import Share
from headwater.model import Encoder
from headwater.trainer import Objective
from headwater.transfer_learning.task_options import TaskOptions


class Balancer(ABC):
    """Makes one step of several tasks, the target's first.

    Args:
        weights: What each task counts; where weights are learned, what they begin with.
        encoder: What the tasks share.
        options: Of the tasks.
        seed: Of what is drawn.
    """

    whole_gradients: ClassVar[bool] = False
    """Whether it compares the tasks' gradients: then each step has all tasks, and one process works it out."""

    def __init__(self, weights: Sequence[float], encoder: Encoder, options: TaskOptions, seed: int) -> None:
        self.start = tuple(weights)
        self.encoder = encoder
        self.options = options
        self.seed = seed
        self.learned = nn.ParameterList()
        """What the optimizer learns beside the model."""

    @abstractmethod
    def objectives(self, tasks: Sequence[Objective]) -> Sequence[Objective]:
        """Return what a step learns: an objective for each task, or one for all if `whole_gradients`."""

    def weights(self) -> Sequence[float]:
        """Return what each task counts now."""
        return self.start

    def notes(self, names: Sequence[str]) -> list[str]:
        """Return sentences on what came of the tasks of these names."""
        counted = (f"{name} {weight:.3g}" for name, weight in zip(names, self.weights(), strict=True))
        return [f"Weights of the tasks: {', '.join(counted)}."]


@dataclass
class Weighted(Objective):
    """An objective that counts more or less."""

    objective: Objective
    weight: float

    def __post_init__(self) -> None:
        """An epoch is the objective's own."""
        self.steps_per_epoch = self.objective.steps_per_epoch

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the weighted parts of the loss."""
        for loss in self.objective.losses(step, share):
            yield self.weight * loss


def apart(
    objective: Objective, step: int, share: Share, parameters: Sequence[nn.Parameter]
) -> Generator[Tensor, None, tuple[float, list[Tensor]]]:
    """Yield an objective's losses; return their sum, and the gradient that they alone have left in parameters.

    What the parameters held before is put back. It works because a loss is asked for when the last one's gradient lies
    in the parameters (`Objective.losses`).
    """
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    total = 0.0
    for loss in objective.losses(step, share):
        total += float(loss.detach())
        yield loss
    own = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient
    return total, own


def add_gradient(parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor]) -> None:
    """Add a gradient to what the parameters hold."""
    for parameter, value in zip(parameters, gradient, strict=True):
        parameter.grad = value if parameter.grad is None else parameter.grad + value
