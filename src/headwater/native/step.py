"""Layers that advance one row step by step: the weights are packed once, a step is one call.

Shapes: D input features, H hidden.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.native.library import kernels, pointer
from headwater.native.recurrent import KINDS

_UNITS = 16
"""Each vector of the state is filled up to a multiple of so many floats."""
_VECTORS = 4
"""Of a layer's memory: h, an LSTM's c, and room to work in."""


class _StepLayer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("cell", "inputs", "hidden")),
        *((name, ctypes.c_void_p) for name in ("weights", "memory")),
    ]


class Steps:
    """Layers in one direction, on top of each other, and the state of one row.

    Args:
        kind: One of `KINDS`.
        layers: For each ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh`` as in `torch.nn`; they are copied.

    Attributes:
        states: Each layer's h, and an LSTM's c, (1, H): views of what the next step goes on from.
    """

    def __init__(self, kind: str, layers: Sequence[Sequence[Tensor]]) -> None:
        number, gates = KINDS[kind]
        names = ("h", "c") if kind == "lstm" else ("h",)
        library = kernels()
        self._kept: list[Tensor] = []  # what the structures point to
        self.states: list[dict[str, Tensor]] = []
        self._layers = (_StepLayer * len(layers))()
        for layer, given in enumerate(layers):
            weights = [value.detach().contiguous() for value in given]
            inputs, hidden = (value.shape[1] for value in weights[:2])
            packed = weights[0].new_empty(library.headwater_step_floats(number, inputs, hidden))
            shapes = ((gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,))
            places = [pointer(weight, *shape) for weight, shape in zip(weights, shapes, strict=True)]
            library.headwater_pack_step(number, inputs, hidden, *places, packed.data_ptr())
            memory = packed.new_zeros(_VECTORS, -(-hidden // _UNITS) * _UNITS)
            self.states.append({name: memory[i : i + 1, :hidden] for i, name in enumerate(names)})
            self._kept += [packed, memory]
            self._layers[layer] = _StepLayer(number, inputs, hidden, packed.data_ptr(), memory.data_ptr())
        self._y_H = memory[0, :hidden].clone()  # allocating like a tensor is the fastest way
        self._start, self._count = ctypes.addressof(self._layers), len(layers)
        self._run = library.headwater_step

    def __call__(self, x_D: Tensor) -> Tensor:
        """Advance by one step: dense float32 inputs (D,) to outputs (H,)."""
        y_H = torch.empty_like(self._y_H)
        self._run(self._start, self._count, x_D.data_ptr(), y_H.data_ptr())
        return y_H
