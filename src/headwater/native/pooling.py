"""Pooling packed states, without padding them first.

Shapes: N valid steps, B batch, F features of a state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headwater.native.library import check, kernels, pointer
from headwater.native.packing import Packing

_PARTS = {"last": (0, None, None), "max": (None, 0, None), "mean": (None, None, 0), "concat": (0, 1, 2)}
"""Which block of features the last, largest and mean states make, by the pooling's name."""


def pool_packed(y_NF: Tensor, packing: Packing, pooling: str, *, bidirectional: bool) -> Tensor:
    """Return the pooled states of each row, as `headwater.model.pool` does of padded ones.

    Args:
        y_NF: Packed states in float32.
        packing: Where they belong.
        pooling: `last`, `max`, `mean` or `concat`.
        bidirectional: Whether the second half of the features was read backwards.

    Returns:
        (B, F), or (B, 3 * F) for `concat`, in the order of the padded rows.
    """
    forward = y_NF.shape[1] // 2 if bidirectional else y_NF.shape[1]
    pooled: Tensor = _Pool.apply(y_NF, packing, _PARTS[pooling], forward)  # type: ignore[no-untyped-call]
    return pooled


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_NF: Tensor, packing: Packing, parts: tuple[int | None, ...], forward: int) -> Tensor:
        y_NF = y_NF.contiguous()
        batch, features = packing.shape[0], y_NF.shape[1]
        pooled = y_NF.new_empty(batch, features * sum(part is not None for part in parts))
        ties_BF = y_NF.new_empty(batch, features) if parts[1] is not None else None
        check(
            kernels().headwater_pool(
                *_plan(y_NF, packing, forward),
                pointer(y_NF, len(packing.place_N), features),
                *(_block(pooled, part, features) for part in parts),
                pooled.shape[1],
                None if ties_BF is None else pointer(ties_BF),
            )
        )
        ctx.save_for_backward(y_NF, pooled, ties_BF)
        ctx.given = packing, parts, forward
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y_NF, pooled, ties_BF = ctx.saved_tensors
        packing, parts, forward = ctx.given
        gradient = gradient.contiguous()
        features = y_NF.shape[1]
        dy_NF = torch.empty_like(y_NF)
        check(
            kernels().headwater_pool_backward(
                *_plan(y_NF, packing, forward),
                *(pointer(y_NF), _block(pooled, parts[1], features)),
                None if ties_BF is None else pointer(ties_BF),
                *(_block(gradient, part, features) for part in parts),
                *(pooled.shape[1], pointer(dy_NF)),
            )
        )
        return dy_NF, None, None, None


def _plan(y_NF: Tensor, packing: Packing, forward: int) -> tuple[int, ...]:
    return y_NF.shape[1], forward, len(packing.counts_T), pointer(packing.counts_T), pointer(packing.order_B)


def _block(values: Tensor, part: int | None, features: int) -> int | None:
    """Return where a block of a tensor's columns begins."""
    return None if part is None else pointer(values) + part * features * values.element_size()
