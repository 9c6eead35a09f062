"""Ditto: beside the shared model each client trains one of its own that is held to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from headwater.data.batches import Batch
from headwater.federated.client_updates import LocalMethod, LocalRound, LocalTraining
from headwater.federated.personal.base import Personalizer
from headwater.federated.protocols import Client, Instruction, Update
from headwater.regularizers import anchor
from headwater.weights import Weights, add_scaled

_OWN = "ditto/"


@dataclass
class Ditto(Personalizer):
    """Global-regularized personal models (Li et al. 2021, arXiv:2012.04221, algorithm 1).

    The shared model w learns as it would alone. The client's own v, which starts from the first w that it is sent,
    minimizes F(v) + pull / 2 * |v - w|^2 in as many steps.

    Attributes:
        local: How a client trains the shared model; its own learns in the same way, without the methods.
        pull: The paper's lambda; with 0 each client learns alone.
    """

    local: LocalTraining
    pull: float = 1.0

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train v, then w; send w."""
        v = self.personal(instruction.weights, client)
        train_own = replace(self.local, methods=(_Pull(instruction.weights, self.pull),))
        change = train_own(replace(instruction, weights=v), client).delta
        client.state |= {_OWN + name: value for name, value in add_scaled(v, change).items()}
        return self.local(instruction, client)

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return v."""
        return {name: client.state.get(_OWN + name, value) for name, value in weights.items()}


@dataclass
class _Pull(LocalMethod):
    to: Weights
    strength: float

    def loss(self, local: LocalRound, batch: Batch | None) -> Tensor | None:
        """Return strength / 2 * |v - w|^2."""
        del batch
        return anchor(local.shared, self.to, self.strength)
