"""Matrices as products of two thin ones.

Shapes: N rows, M columns, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater.federated.codecs.base import Codec, Reader, Writer

_ITERATIONS = 2


@dataclass(frozen=True)
class LowRank(Codec):
    """PowerSGD (Vogels et al. 2019, arXiv:1905.13727): subspace iteration from a drawn start, near the best factors.

    The paper goes on from the last step's factors. A client takes part too rarely for that to help; a second
    iteration stands in for it, and clients remember nothing. Error feedback makes up for what is left out.

    Attributes:
        rank: R. Tensors that the factors would not make smaller, vectors among them, go on as they are.
    """

    rank: int = 4

    def fits(self, shape: Sequence[int]) -> bool:
        """Matrices larger than their factors."""
        return len(shape) == 2 and self.rank * sum(shape) < shape[0] * shape[1]

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write an orthonormal basis of columns, and what multiplies it."""
        start_MR = write.draw().standard_normal((value.shape[1], self.rank), dtype=np.float32)
        right_MR = torch.from_numpy(start_MR)
        for _ in range(_ITERATIONS):
            left_NR = torch.linalg.qr(value @ right_MR).Q
            right_MR = value.T @ left_NR
        write.numbers("left", left_NR.contiguous())
        write.numbers("right", right_MR.contiguous())

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the product."""
        rows, columns = shape
        return read.numbers("left", (rows, self.rank)) @ read.numbers("right", (columns, self.rank)).T
