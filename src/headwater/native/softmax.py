"""The loss of a softmax over many classes, together with the linear layer before it.

Shapes: N rows, D input features, V classes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headwater.native.library import check, kernels, pointer, product, usable

_VECTOR = 16
"""Floats of the widest vector; rows are filled up to a multiple of it."""


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """Return the mean cross entropy of ``softmax(x W' + b)``, in nats.

    Equal to `torch.nn.functional.cross_entropy` of `linear`. The kernels keep one matrix of N x V numbers where torch
    keeps three, and know the gradient when they know the loss.

    Args:
        x_ND: Inputs.
        weight_VD: W.
        bias_V: b, if any.
        targets_N: The right class of each row, from 0 to V - 1.
    """
    if not usable(weight_VD) or not len(x_ND):
        return F.cross_entropy(F.linear(x_ND, weight_VD, bias_V).float(), targets_N)
    if not 0 <= int(targets_N.min()) <= int(targets_N.max()) < len(weight_VD):
        raise IndexError(f"targets from {int(targets_N.min())} to {int(targets_N.max())} for {len(weight_VD)} classes")
    loss: Tensor = _LinearCrossEntropy.apply(x_ND.float(), weight_VD, bias_V, targets_N)  # type: ignore[no-untyped-call]
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
        x_ND, weight_VD, targets_N = x_ND.contiguous(), weight_VD.contiguous(), targets_N.to(torch.int64).contiguous()
        rows, classes = len(x_ND), len(weight_VD)
        across = -(-rows // _VECTOR) * _VECTOR
        gradient_VA = x_ND.new_empty(classes, across)
        loss = ctypes.c_double()
        ctx.half = torch.is_autocast_enabled("cpu")
        check(
            kernels().headwater_linear_cross_entropy(
                *(rows, x_ND.shape[1], classes, across),
                *(pointer(x_ND), pointer(weight_VD, classes, x_ND.shape[1])),
                *(None if bias_V is None else pointer(bias_V.contiguous(), classes), pointer(targets_N, rows)),
                *(gradient_VA.data_ptr(), ctypes.addressof(loss), ctx.half),
            )
        )
        ctx.save_for_backward(x_ND, weight_VD, gradient_VA[:, :rows])
        return x_ND.new_tensor(loss.value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        x_ND, weight_VD, gradient_VN = ctx.saved_tensors
        dx_ND = product(gradient_VN.t(), weight_VD, half=ctx.half) if ctx.needs_input_grad[0] else None
        dweight_VD = product(gradient_VN, x_ND, half=ctx.half) if ctx.needs_input_grad[1] else None
        dbias_V = gradient_VN.sum(1) if ctx.needs_input_grad[2] else None
        if float(scale) != 1.0:
            for gradient in (dx_ND, dweight_VD, dbias_V):
                if gradient is not None:
                    gradient.mul_(scale)
        return dx_ND, dweight_VD, dbias_V, None
