"""Server optimizers: the aggregate is a direction, and the server takes a step along it (Reddi et al. 2021)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from headwater.config import Config, Fraction
from headwater.federated import SERVER_OPTIMIZERS
from headwater.federated.protocols import ServerOptimizer
from headwater.registry import name_in
from headwater.weights import Weights, add_scaled, part, zeros_like


class ServerOptions(Config):
    """How the server steps."""

    server_optimizer: Annotated[str, name_in("headwater.server_optimizers", SERVER_OPTIMIZERS)] = "sgd"
    """`sgd` (with momentum, FedAvgM), or one that gives each number a rate of its own: `adam`, `yogi` or `adagrad`."""
    server_lr: Annotated[float | None, Field(gt=0.0, le=1e6)] = None
    """Times the aggregate; left out, it is what the optimizer usually takes: 1 of `sgd`, plain federated averaging,
    0.01 of `adam` and `yogi`, 0.03 of `adagrad`."""
    server_momentum: Fraction = 0.9
    """Share of the server's last step that is kept, the beta1 of `adam` and the like: what carries many small clients
    forward; with `sgd`, 0 is FedAvg."""
    server_beta2: Fraction = 0.99
    """Share of the mean square of the last aggregates that is kept, by `adam` and `yogi`."""
    server_tau: Annotated[float, Field(ge=1e-12)] = 0.001
    """How little an aggregate's numbers may be for `adam`, `yogi` and `adagrad` to make much of them."""

    def unread(self) -> dict[str, str]:
        """Plain descent has no squares, and Adagrad forgets none."""
        forgetting, adaptive = "with --server-optimizer adam or yogi", "with an adaptive --server-optimizer"
        unread = {"sgd": {"server_beta2": forgetting, "server_tau": adaptive}, "adagrad": {"server_beta2": forgetting}}
        return super().unread() | unread.get(self.server_optimizer, {})


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
            self._velocity = direction = add_scaled(direction, self._velocity, self.momentum)
        return add_scaled(weights, direction, self.lr)

    def state(self) -> Weights:
        """Return the velocity."""
        return dict(self._velocity)

    def restore(self, state: Weights) -> None:
        """Take up the velocity."""
        self._velocity = dict(state)


@dataclass
class _Adaptive(ServerOptimizer):
    """A step of its own size for each number (Reddi et al. 2021, arXiv:2003.00295, algorithm 2).

    m <- beta1 m + (1 - beta1) d, x <- x + lr m / (sqrt(v) + tau), without bias correction. v begins at tau^2, as in the
    paper; its authors' code begins at 0, where first steps are larger.

    Attributes:
        lr: The paper's eta.
        momentum: The paper's beta1.
        tau: How adaptive: with a large one the steps are those of plain descent, divided by it.
    """

    lr: float = 0.01
    momentum: float = 0.9
    tau: float = 1e-3
    _mean: Weights = field(default_factory=dict)
    _square: Weights = field(default_factory=dict)

    def step(self, weights: Weights, direction: Weights) -> Weights:
        """Return the next weights."""
        mean = self._mean or zeros_like(direction)
        square = self._square or {name: torch.full_like(d, self.tau**2) for name, d in direction.items()}
        self._mean = {name: self.momentum * mean[name] + (1 - self.momentum) * d for name, d in direction.items()}
        self._square = {name: self.moved(square[name], d.square()) for name, d in direction.items()}
        steps = {name: m / (self._square[name].sqrt() + self.tau) for name, m in self._mean.items()}
        return add_scaled(weights, steps, self.lr)

    @abstractmethod
    def moved(self, square: Tensor, new: Tensor) -> Tensor:
        """Return v from the last one and the squared direction."""

    def state(self) -> Weights:
        """Return m and v."""
        both = {"mean": self._mean, "square": self._square}
        return {f"{which}/{name}": value for which, weights in both.items() for name, value in weights.items()}

    def restore(self, state: Weights) -> None:
        """Take up m and v."""
        self._mean, self._square = part(state, "mean/"), part(state, "square/")


@dataclass
class ServerAdam(_Adaptive):
    """FedAdam: v is a running mean of squares.

    Attributes:
        beta2: Share of v that is kept.
    """

    beta2: float = 0.99

    def moved(self, square: Tensor, new: Tensor) -> Tensor:
        """Return beta2 v + (1 - beta2) d^2."""
        return self.beta2 * square + (1 - self.beta2) * new


@dataclass
class ServerYogi(_Adaptive):
    """FedYogi: v moves towards d^2 by a share of d^2, so it falls slowly where directions get small.

    Attributes:
        beta2: 1 less the share.
    """

    beta2: float = 0.99

    def moved(self, square: Tensor, new: Tensor) -> Tensor:
        """Return v - (1 - beta2) d^2 sign(v - d^2)."""
        return square - (1 - self.beta2) * new * (square - new).sign()


@dataclass
class ServerAdagrad(_Adaptive):
    """FedAdagrad: v is the sum of all squares, so steps get smaller."""

    lr: float = 0.03

    def moved(self, square: Tensor, new: Tensor) -> Tensor:
        """Return v + d^2."""
        return square + new
