"""MOON: a client's representations stay near the shared model's and leave those of its own last one."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.data.batches import Batch
from headwater.federated.client_updates import LocalMethod, LocalRound
from headwater.federated.protocols import Update, UpdateTransform
from headwater.model import SequenceModel
from headwater.weights import load_weights

_LAST = "moon/"


@dataclass
class Moon(LocalMethod, UpdateTransform):
    """Model-contrastive learning (Li, He and Song 2021, arXiv:2103.16257, equation 3).

    Representations are the states' mean over a row's steps; the paper's projection head is left out.

    Attributes:
        moon: The paper's mu, the weight of the contrastive loss.
        moon_temperature: The paper's tau.
    """

    moon: float = 1.0
    moon_temperature: float = 0.5

    def begin(self, local: LocalRound) -> None:
        """Set up the shared model and the client's own of its last round, if it had one."""
        names = {name: local.client.state.get(_LAST + name) for name in local.shared}
        last = {name: value for name, value in names.items() if value is not None}
        if not last:
            return
        shared, own = copy.deepcopy(local.model).eval(), copy.deepcopy(local.model).eval()
        load_weights(own, last)
        local.notes[_LAST] = shared, own

    def loss(self, local: LocalRound, batch: Batch | None) -> Tensor | None:
        """Return the contrast of a batch's representations; None in a client's first round."""
        if batch is None or _LAST not in local.notes:
            return None
        shared, own = local.notes[_LAST]
        with torch.no_grad():
            positive_BH, negative_BH = _represented(shared, batch), _represented(own, batch)
        z_BH = _represented(local.model, batch)
        near_B = F.cosine_similarity(z_BH, positive_BH) / self.moon_temperature
        far_B = F.cosine_similarity(z_BH, negative_BH) / self.moon_temperature
        return self.moon * F.softplus(far_B - near_B).mean()

    def finish(self, local: LocalRound, update: Update) -> Update:
        """Keep what was learned."""
        local.client.state |= {_LAST + name: p.detach().cpu().clone() for name, p in local.shared.items()}
        return update


def _represented(model: SequenceModel, batch: Batch) -> Tensor:
    return model.encoder.pooled(batch.inputs, batch.lengths_B, "mean").float()
