"""Ragged batches without padding.

Shapes: N valid steps of all rows, B batch, T time, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.native.library import kernels


@dataclass(frozen=True)
class Packing:
    """Where each valid step of a padded batch lies in the packed one: rows by falling length, step after step.

    Attributes:
        shape: B and T of the padded batch.
        counts_T: Rows running at each step, falling; one for each step of the longest row.
        order_B: The rows in the order of falling length.
        place_N: Where each packed step is in the flattened padded batch.
        row_N: The row of each packed step.
        mirror_N: The packed step that takes a step's place when each row is read from its end; its own inverse.
        last_B: The packed place of each row's last step.
    """

    shape: tuple[int, int]
    counts_T: Tensor
    order_B: Tensor
    place_N: Tensor
    row_N: Tensor
    mirror_N: Tensor
    last_B: Tensor

    @classmethod
    def of(cls, lengths_B: Tensor | None, shape: tuple[int, int]) -> Packing:
        """Plan a batch of B rows and T steps; lengths from 1 to T, all T if None."""
        batch, time = shape
        if lengths_B is None:
            lengths_B = torch.full((batch,), time)
        lengths_B = lengths_B.to("cpu", torch.int64).contiguous()
        lengths = lengths_B.tolist()
        if min(lengths) < 1 or max(lengths) > time or len(lengths) != batch:
            raise ValueError(f"{len(lengths)} lengths from {min(lengths)} to {max(lengths)} for {batch} rows of {time}")
        order_B = torch.argsort(lengths_B, descending=True, stable=True)
        counts_T, last_B = torch.empty(time, dtype=torch.int64), torch.empty(batch, dtype=torch.int64)
        place_N, row_N, mirror_N = torch.empty(3, sum(lengths), dtype=torch.int64).unbind()
        written = (counts_T, place_N, row_N, mirror_N, last_B)
        steps = kernels().headwater_plan(
            lengths_B.data_ptr(), order_B.data_ptr(), batch, time, *(tensor.data_ptr() for tensor in written)
        )
        return cls(shape, counts_T[:steps], order_B, place_N, row_N, mirror_N, last_B)

    def before(self) -> Tensor:
        """Return where each packed step's state before is, in the B initial states followed by the N packed ones."""
        starts_T = torch.cumsum(self.counts_T, 0) - self.counts_T
        steps = torch.repeat_interleave(torch.arange(len(self.counts_T)), self.counts_T)
        rank_N = torch.arange(len(self.place_N)) - starts_T[steps]
        return torch.where(steps > 0, starts_T[steps - 1] + self.shape[0], 0) + rank_N

    def pack(self, x_BTD: Tensor) -> Tensor:
        """Return the valid steps (N, D)."""
        return x_BTD.reshape(-1, x_BTD.shape[2]).index_select(0, self.place_N)

    def unpack(self, y_ND: Tensor) -> Tensor:
        """Return the padded batch (B, T, D), zero on padding."""
        batch, time = self.shape
        flat = y_ND.new_zeros(batch * time, y_ND.shape[1])
        return flat.index_copy(0, self.place_N, y_ND).view(batch, time, -1)
