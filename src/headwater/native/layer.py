"""A whole layer in one direction over a ragged batch, forward and backward in the kernels.

Shapes: N valid steps of all rows, B batch, T time, D input features, H hidden, G gates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headwater.native.library import product, run_backward, run_forward

KINDS = {"rnn": (0, 1), "rnn_relu": (1, 1), "lstm": (2, 4), "gru": (3, 3), "gru_reset_before": (4, 3)}
"""Number of the cell in the kernels, and its gates."""


@dataclass(frozen=True)
class Packing:
    """Where each valid step of a padded batch lies in the packed one: rows by falling length, step after step.

    Attributes:
        counts_T: Rows running at each step, falling.
        order_B: The rows in the order of falling length.
        index_N: Place of each packed step in the flattened padded batch (B * T).
        last_B: The packed place of each row's last step, in the order of the padded batch.
        before_N: The packed place of the step before; counted from B on, since the first B are the initial states.
    """

    counts_T: Tensor
    order_B: Tensor
    index_N: Tensor
    last_B: Tensor
    before_N: Tensor

    @classmethod
    def of(cls, lengths_B: Tensor, time: int) -> Packing:
        """Plan a batch; `lengths_B` on the CPU, each from 1 to `time`."""
        order_B = torch.argsort(lengths_B, descending=True, stable=True)
        sorted_B = lengths_B[order_B]
        steps = int(sorted_B[0])
        running_TB = torch.arange(steps).unsqueeze(1) < sorted_B
        counts_T = running_TB.sum(1)
        starts_T = torch.cumsum(counts_T, 0) - counts_T
        step_N, place_N = running_TB.nonzero(as_tuple=True)
        index_N = order_B[place_N] * time + step_N
        before_N = torch.where(step_N > 0, starts_T[step_N - 1] + len(lengths_B), 0) + place_N
        rank_B = torch.argsort(order_B)
        last_B = starts_T[lengths_B - 1] + rank_B
        return cls(counts_T.contiguous(), order_B, index_N, last_B, before_N)


class RecurrentLayer(torch.autograd.Function):
    """Packed inputs to packed states; the gradient is that of backpropagation through time, in the kernels."""

    @staticmethod
    def forward(
        ctx: Any, kind: str, packing: Packing, x_ND: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor,
        bias_hh: Tensor, h_BH: Tensor, c_BH: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return the states (N, H), and the LSTM's cells (N, H); states of rows in the packing's order."""
        number, gates = KINDS[kind]
        hidden = weight_hh.shape[1]
        weight_hh = weight_hh.contiguous()
        bias = bias_ih + bias_hh
        bias_n = None
        if kind == "gru":  # its candidate's recurrent bias stands inside the reset
            bias[2 * hidden :] = bias_ih[2 * hidden :]
            bias_n = bias_hh[2 * hidden :].contiguous()
        activations = product(x_ND, weight_ih.t()).add_(bias)
        numbers = (number, gates, hidden, len(packing.counts_T))
        states = x_ND.new_empty(len(x_ND), hidden)
        tensors = {
            "counts": packing.counts_T,
            "weight_hh": weight_hh,
            "bias_n": bias_n,
            "h0": h_BH.contiguous(),
            "c0": c_BH.contiguous() if c_BH is not None else None,
            "activations": activations,
            "y": states,
            "c": torch.empty_like(states) if kind == "lstm" else None,
            "extra": torch.empty_like(states) if kind == "gru" else None,
        }
        run_forward(numbers, tensors)
        ctx.numbers, ctx.kind, ctx.packing = numbers, kind, packing
        ctx.names = [name for name, value in tensors.items() if value is not None]
        ctx.save_for_backward(x_ND, weight_ih, *(tensors[name] for name in ctx.names))
        ctx.set_materialize_grads(False)
        return states, tensors["c"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NH: Tensor | None, dc_NH: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of all tensors."""
        x_ND, weight_ih, *saved = ctx.saved_tensors
        tensors = dict.fromkeys(("bias_n", "c0", "c", "extra")) | dict(zip(ctx.names, saved, strict=True))
        hidden, kind = ctx.numbers[2], ctx.kind
        states_NH, h_BH = tensors["y"], tensors["h0"]
        gradients = {
            "y": dy_NH.contiguous() if dy_NH is not None else torch.zeros_like(states_NH),
            "c": dc_NH.contiguous() if dc_NH is not None else None,
            "activations": torch.empty_like(tensors["activations"]),
            "extra": torch.empty_like(states_NH) if kind == "gru" else None,
            "h0": torch.empty_like(h_BH),
            "c0": torch.empty_like(h_BH) if kind == "lstm" else None,
        }
        run_backward(ctx.numbers, tensors, gradients)
        da_NG = gradients["activations"]
        before_NH = torch.cat([h_BH, states_NH])[ctx.packing.before_N]
        dbias = da_NG.sum(0)
        dbias_hh = dbias
        if kind == "gru":
            split = 2 * hidden
            dn_NH = gradients["extra"]
            dweight_hh = torch.cat([product(da_NG[:, :split].t(), before_NH), product(dn_NH.t(), before_NH)])
            dbias_hh = torch.cat([dbias[:split], dn_NH.sum(0)])
        elif kind == "gru_reset_before":
            split = 2 * hidden
            reset_NH = tensors["activations"][:, :hidden] * before_NH
            dweight_hh = torch.cat(
                [product(da_NG[:, :split].t(), before_NH), product(da_NG[:, split:].t(), reset_NH)]
            )
        else:
            dweight_hh = product(da_NG.t(), before_NH)
        dx_ND = product(da_NG, weight_ih) if ctx.needs_input_grad[2] else None
        dweight_ih = product(da_NG.t(), x_ND)
        return None, None, dx_ND, dweight_ih, dweight_hh, dbias, dbias_hh, gradients["h0"], gradients["c0"]
