"""FedProx: clients are held to the weights that they were sent."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from headwater.data.batches import Batch
from headwater.federated.client_updates import LocalMethod, LocalRound
from headwater.federated.protocols import UpdateTransform
from headwater.regularizers import anchor


@dataclass
class FedProx(LocalMethod, UpdateTransform):
    """The client minimizes F(w) + prox / 2 * |w - w_t|^2 (Li et al. 2020, arXiv:1812.06127, equation 2).

    Attributes:
        prox: The paper's mu; 0 is plain local training.
    """

    prox: float = 0.01

    def loss(self, local: LocalRound, batch: Batch | None) -> Tensor | None:
        """Return the pull to the weights of the round's beginning."""
        del batch
        return anchor(local.shared, local.instruction.weights, self.prox)
