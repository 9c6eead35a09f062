"""A whole layer in one direction over a ragged batch, forward and backward in the kernels.

Shapes: N valid steps of all rows, B batch, D input features, H hidden, G gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from headwater.native.library import run_backward, run_forward
from headwater.native.packing import Packing

KINDS = {"rnn": (0, 1), "rnn_relu": (1, 1), "lstm": (2, 4), "gru": (3, 3), "gru_reset_before": (4, 3)}
"""Number of the cell in the kernels, and its gates."""

_Tensors = dict[str, Any]
"""Tensors by the names of the kernels' structures; None where a cell has no such thing."""


@dataclass(frozen=True)
class GateGradients:
    """What a backward pass knew of each step of each row: all that gradients of single rows are made of.

    Attributes:
        weight_ih: The layer's parameter, to tell the layers apart.
        packing: Of the batch.
        inputs_ND: What the input weights have read.
        gates_NG: The loss's gradient by the gates' inputs.
        recurrent: Gradients by the recurrent products, and what each product has read: for all gates, or for a GRU's
            gates and its candidate apart.
    """

    weight_ih: Tensor
    packing: Packing
    inputs_ND: Tensor
    gates_NG: Tensor
    recurrent: tuple[tuple[Tensor, Tensor], ...]

    def of_rows(self) -> dict[str, Tensor]:
        """Return each row's own gradients: ``weight_ih`` (B, G*H, D), ``weight_hh``, ``bias_ih`` and ``bias_hh``."""
        gates_BTG = self.packing.unpack(self.gates_NG)
        blocks = [(self.packing.unpack(gates), self.packing.unpack(states)) for gates, states in self.recurrent]
        return {
            "weight_ih": gates_BTG.mT @ self.packing.unpack(self.inputs_ND),
            "weight_hh": torch.cat([gates.mT @ states for gates, states in blocks], 1),
            "bias_ih": gates_BTG.sum(1),
            "bias_hh": torch.cat([gates.sum(1) for gates, _ in blocks], 1),
        }

    def squared_norms(self) -> Tensor:
        """Return the squared L2 norm (B,) of each row's gradient over the layer's four parameters.

        The weights' norms come from products of steps by steps, without any row's gradient: |sum g x'|^2 =
        sum (g g')(x x') (Li et al. 2022, arXiv:2110.05679, section 4).
        """
        total_B = torch.zeros(self.packing.shape[0])
        for gates, inputs in ((self.gates_NG, self.inputs_ND), *self.recurrent):
            gates_BTG, inputs_BTD = self.packing.unpack(gates), self.packing.unpack(inputs)
            total_B += ((gates_BTG @ gates_BTG.mT) * (inputs_BTD @ inputs_BTD.mT)).sum((1, 2))
            total_B += gates_BTG.sum(1).square().sum(1)
        return total_B


_kept: ContextVar[list[GateGradients] | None] = ContextVar("kept", default=None)


@contextmanager
def keep_gate_gradients() -> Iterator[list[GateGradients]]:
    """Keep the gate gradients of every backward pass within, in the order of the passes.

    For gradients and norms of single rows, as differential privacy wants them, from one pass over the batch.
    """
    kept: list[GateGradients] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def keeps_gate_gradients() -> bool:
    """Return whether somebody wants the gate gradients, which only the kernels tell."""
    return _kept.get() is not None


class RecurrentLayer(torch.autograd.Function):
    """Packed inputs to packed states; the gradient is that of backpropagation through time (Werbos 1990)."""

    @staticmethod
    def forward(
        ctx: Any, kind: str, packing: Packing, half: bool, x_ND: Tensor,  # noqa: FBT001 - autograd takes no names
        weight_ih: Tensor, weight_hh: Tensor,
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
        tensors: _Tensors = {
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
        steps, batch = len(packing.place_N), packing.shape[0]
        shapes = {
            "x": (steps, weight_ih.shape[1]),
            "weight_ih": (gates * hidden, weight_ih.shape[1]),
            "weight_hh": (gates * hidden, hidden),
            "bias_ih": (gates * hidden,),
            "bias_hh": (gates * hidden,),
            "h0": (batch, hidden),
            "c0": (batch, hidden),
        }
        for name, shape in shapes.items():
            if tensors[name] is not None and tensors[name].shape != shape:
                raise ValueError(f"{name} has the shape {tuple(tensors[name].shape)}, the kernels need {shape}")
        ctx.numbers = (number, gates, x_ND.shape[1], hidden, len(packing.counts_T), int(half))
        run_forward(ctx.numbers, tensors)
        ctx.packing = packing
        ctx.names = [name for name, value in tensors.items() if value is not None]
        ctx.save_for_backward(*(tensors[name] for name in ctx.names))
        ctx.set_materialize_grads(False)
        return tensors["y"], tensors["c"]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_NH: Tensor | None, dc_NH: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradients of all tensors; what needs none isn't computed."""
        tensors: _Tensors = dict.fromkeys(("h0", "c0", "c", "extra")) | dict(
            zip(ctx.names, ctx.saved_tensors, strict=True)
        )
        wanted = ctx.needs_input_grad[3:]

        def room(name: str, place: int) -> Tensor | None:
            return torch.empty_like(tensors[name]) if wanted[place] else None

        weights = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        sums = {name: torch.zeros_like(tensors[name]) if wanted[1 + i] else None for i, name in enumerate(weights)}
        gradients: _Tensors = {
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
        if (kept := _kept.get()) is not None:
            kept.append(_gate_gradients(ctx.packing, tensors, gradients))
        return None, None, None, *(gradients[name] for name in ("x", *weights, "h0", "c0"))


def _gate_gradients(packing: Packing, tensors: _Tensors, gradients: _Tensors) -> GateGradients:
    gates_NG, states_NH = gradients["activations"], tensors["y"]
    hidden = states_NH.shape[1]
    first_BH = states_NH.new_zeros(packing.shape[0], hidden) if tensors["h0"] is None else tensors["h0"]
    old_NH = torch.cat([first_BH, states_NH]).index_select(0, packing.before())
    split = 2 * hidden
    recurrent: tuple[tuple[Tensor, Tensor], ...]
    if gradients["extra"] is not None:
        recurrent = ((gates_NG[:, :split], old_NH), (gradients["extra"], old_NH))
    elif gates_NG.shape[1] == 3 * hidden:
        reset_NH = tensors["activations"][:, :hidden] * old_NH
        recurrent = ((gates_NG[:, :split], old_NH), (gates_NG[:, split:], reset_NH))
    else:
        recurrent = ((gates_NG, old_NH),)
    return GateGradients(tensors["weight_ih"], packing, tensors["x"], gates_NG, recurrent)
