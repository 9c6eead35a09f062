"""A whole layer in one direction over a ragged batch, forward and backward in the kernels.

Shapes: N valid steps of all rows, B batch, D input features, H hidden, G gates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headwater.native.library import run_backward, run_forward
from headwater.native.packing import Packing

KINDS = {"rnn": (0, 1), "rnn_relu": (1, 1), "lstm": (2, 4), "gru": (3, 3), "gru_reset_before": (4, 3)}
"""Number of the cell in the kernels, and its gates."""


class RecurrentLayer(torch.autograd.Function):
    """Packed inputs to packed states; the gradient is that of backpropagation through time (Werbos 1990)."""

    @staticmethod
    def forward(
        ctx: Any, kind: str, packing: Packing, half: bool, x_ND: Tensor, weight_ih: Tensor, weight_hh: Tensor,
        bias_ih: Tensor, bias_hh: Tensor, h_BH: Tensor | None, c_BH: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Run a layer.

        Args:
            ctx: For the backward pass.
            kind: One of `KINDS`.
            packing: Of the batch.
            half: Multiply bfloat16 numbers; sums, gates and states are float32.
            x_ND: Packed inputs.
            weight_ih: (G*H, D), and the others as in `torch.nn`.
            weight_hh: (G*H, H).
            bias_ih: (G*H,).
            bias_hh: (G*H,).
            h_BH: What the rows start from, in the packing's order; None for zeros.
            c_BH: Likewise an LSTM's cells.

        Returns:
            The states (N, H), and an LSTM's cells (N, H).
        """
        number, gates = KINDS[kind]
        hidden = weight_hh.shape[1]
        tensors = {
            "counts": packing.counts_T,
            "x": x_ND.contiguous(),
            "weight_ih": weight_ih.contiguous(),
            "weight_hh": weight_hh.contiguous(),
            "bias_ih": bias_ih.contiguous(),
            "bias_hh": bias_hh.contiguous(),
            "h0": h_BH.contiguous() if h_BH is not None else None,
            "c0": c_BH.contiguous() if c_BH is not None else None,
            "activations": x_ND.new_empty(len(x_ND), gates * hidden),
            "y": x_ND.new_empty(len(x_ND), hidden),
            "c": x_ND.new_empty(len(x_ND), hidden) if kind == "lstm" else None,
            "extra": x_ND.new_empty(len(x_ND), hidden) if kind == "gru" else None,
        }
        ctx.numbers = (number, gates, x_ND.shape[1], hidden, len(packing.counts_T), int(half))
        run_forward(ctx.numbers, tensors)
        ctx.names = [name for name, value in tensors.items() if value is not None]
        ctx.save_for_backward(*(tensors[name] for name in ctx.names))
        ctx.set_materialize_grads(False)
        return tensors["y"], tensors["c"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NH: Tensor | None, dc_NH: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of all tensors; what needs none isn't computed."""
        tensors = dict.fromkeys(("h0", "c0", "c", "extra")) | dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        wanted = ctx.needs_input_grad[3:]

        def room(name: str, place: int) -> Tensor | None:
            return torch.empty_like(tensors[name]) if wanted[place] else None

        weights = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        sums = {name: torch.zeros_like(tensors[name]) if wanted[1 + i] else None for i, name in enumerate(weights)}
        gradients = {
            "y": dy_NH.contiguous() if dy_NH is not None else None,
            "c": dc_NH.contiguous() if dc_NH is not None else None,
            "activations": torch.empty_like(tensors["activations"]),
            "extra": torch.empty_like(tensors["extra"]) if tensors["extra"] is not None else None,
            "x": room("x", 0),
            **sums,
            "h0": room("h0", 5),
            "c0": room("c0", 6),
        }
        run_backward(ctx.numbers, tensors, gradients)
        return None, None, None, *(gradients[name] for name in ("x", *weights, "h0", "c0"))
