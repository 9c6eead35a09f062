"""FedNova: clients that take more steps don't pull the model further to their own minimum."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from headwater.federated.client_updates import LocalMethod, LocalRound
from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights

_STEPS = "fednova/steps"


@dataclass
class FedNova(LocalMethod, UpdateTransform):
    """Normalized averaging (Wang et al. 2020, arXiv:2007.07481, equation 5), for clients of plain gradient descent.

    Each update is divided by its number of steps, and the average multiplied by the average number of steps. It must be
    the last of several methods: the others go by what was really moved.
    """

    def finish(self, local: LocalRound, update: Update) -> Update:
        """Divide by the number of steps, and send it."""
        mean = {name: update.delta[name] / local.steps for name in local.shared}
        return replace(update, delta=update.delta | mean | {_STEPS: torch.tensor(float(local.steps))})

    def added(self, weights: Weights) -> Weights:
        """Updates carry the number of steps."""
        del weights
        return {_STEPS: torch.zeros(())}

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Multiply by the average number of steps."""
        del replies
        moved = {name: aggregate[name] * aggregate[_STEPS] for name in instruction.weights}
        return {name: value for name, value in (aggregate | moved).items() if name != _STEPS}
