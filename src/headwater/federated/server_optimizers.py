"""Server optimizers: the aggregate is a direction, and the server takes a step along it (Reddi et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from headwater.weights import Weights, add_scaled


@dataclass
class ServerSGD:
    """A step of a fixed size, with momentum if wanted; 1 and 0 are plain federated averaging.

    Attributes:
        lr: Times the direction.
        momentum: Share of the last step that is kept (FedAvgM; Hsu et al. 2019, arXiv:1909.06335).
    """

    lr: float = 1.0
    momentum: float = 0.0
    _velocity: Weights = field(default_factory=dict)

    def step(self, weights: Weights, direction: Weights) -> Weights:
        """Return the next weights."""
        if self.momentum:
            last = self._velocity or {name: torch.zeros_like(value) for name, value in direction.items()}
            self._velocity = direction = add_scaled(direction, last, self.momentum)
        return add_scaled(weights, direction, self.lr)

    def state(self) -> Weights:
        """Return the velocity."""
        return dict(self._velocity)

    def restore(self, state: Weights) -> None:
        """Take up the velocity."""
        self._velocity = dict(state)
