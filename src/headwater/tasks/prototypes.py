"""The means of the classes as a linear head (prototypical networks; Snell et al. 2017, arXiv:1703.05175).

Shapes: N rows, F pooled features, K classes.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prototype_head(pooled_NF: Tensor, targets_N: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the linear layer whose softmax is that of the negative squared Euclidean distances to the class means.

    Since -|x - c|^2 = 2 c.x - |c|^2 - |x|^2, and the last term is the same for all classes, its weight is 2 c and its
    bias -|c|^2 (there "Reinterpretation as a linear model").

    Args:
        pooled_NF: Pooled states of labelled rows, at least one of each class.
        targets_N: The rows' label numbers.
        classes: K.

    Returns:
        Weight (K, F) and bias (K,).
    """
    member_KN = F.one_hot(targets_N, classes).T.to(pooled_NF.dtype)
    means_KF = member_KN @ pooled_NF / member_KN.sum(1, keepdim=True)
    return 2 * means_KF, -means_KF.square().sum(1)
