"""Terms that are added to a loss.

Shapes: B batch, F features.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def anchor(weights: Mapping[str, Tensor], to: Mapping[str, Tensor], strength: float) -> Tensor:
    """Return strength / 2 * |w - w0|^2, the pull of weights towards others.

    With w0 the source's weights this is L2-SP (Li et al. 2018, arXiv:1802.01483), with the weights that a
    client was sent it is FedProx (Li et al. 2020, arXiv:1812.06127).

    Args:
        weights: What is pulled; at least one.
        to: w0, by the same names; it may have more.
        strength: The gradient is this times w - w0.
    """
    distances = [F.mse_loss(value, to[name].to(value.device), reduction="sum") for name, value in weights.items()]
    return strength / 2 * torch.stack(distances).sum()


def spectral_shrinkage(features_BF: Tensor) -> Tensor:
    """Return the square of a batch's smallest singular value.

    Features that carry little of what is common to the batch transfer badly (Chen et al. 2019, "Catastrophic forgetting
    meets negative transfer: batch spectral shrinkage for safe transfer learning", NeurIPS).
    """
    singular: Tensor = torch.linalg.svdvals(features_BF.float())
    return singular[-1].square()
