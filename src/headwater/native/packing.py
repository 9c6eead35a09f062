"""Ragged batches without padding.

Shapes: N valid steps of all rows, B batch, T time, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.native.library import kernels, pointer


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
        order_B, last_B = torch.empty(2, batch, dtype=torch.int64).unbind()
        counts_T = torch.empty(time, dtype=torch.int64)
        steps = torch.empty(3, batch * time, dtype=torch.int64)
        written = (order_B, counts_T, *steps.unbind(), last_B)
        count = -1
        if lengths_B.shape == (batch,):
            count = kernels().headwater_plan(pointer(lengths_B), batch, time, *(t.data_ptr() for t in written))
        if count < 0:
            bounds = f"from {int(lengths_B.min())} to {int(lengths_B.max())}"
            raise ValueError(f"{len(lengths_B)} lengths {bounds} for {batch} rows of {time} steps")
        place_N, row_N, mirror_N = steps[:, :count].unbind()
        return cls(shape, counts_T[: int(lengths_B.max())], order_B, place_N, row_N, mirror_N, last_B)

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
