"""Weights in 8 bits: each row of a matrix is whole numbers from -127 to 127 times one scale.

Only the storage is compressed; the arithmetic stays in float32, so no calibration rows are needed. The
quantizers of the common libraries leave recurrent matrices alone. Each unit of each gate has its own scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.checkpoint import SCALE_SUFFIX
from headwater.weights import Weights

_LARGEST = 127


def quantize(weights: Weights) -> Weights:
    """Return the weights with every matrix in int8 beside its scales; vectors stay as they are.

    Args:
        weights: float32 tensors by name.

    Returns:
        ``NAME`` int8 (rows, ...) and ``NAME.scale`` float32 (rows, 1, ...) of each matrix: their product is
        off by at most half a scale.
    """
    stored: Weights = {}
    for name, value in weights.items():
        if value.ndim < 2:
            stored[name] = value
        else:
            stored[name], stored[name + SCALE_SUFFIX] = quantize_rows(value)
    return stored


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows as int8 and their scales: the largest magnitude over 127, 1 for a row of zeros."""
    scale = matrix.abs().amax(dim=tuple(range(1, matrix.ndim)), keepdim=True) / _LARGEST
    scale = torch.where(scale > 0, scale, 1.0)
    # A scale near the smallest number is itself rounded: dividing by it can pass 127.
    whole = (matrix / scale).round().clamp(-_LARGEST, _LARGEST)
    return whole.to(torch.int8), scale
