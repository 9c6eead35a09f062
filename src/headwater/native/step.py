"""Layers that advance one row step by step: the weights are packed once, a step is one call.

Shapes: D input features, H hidden.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headwater.native.library import kernels
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
        layers: For each the four weights by their names in `torch.nn`, float32; they are copied.

    Attributes:
        states: The h and c of each layer, (1, H), as views of what the next step goes on from; an LSTM's alone has a c.
    """

    def __init__(self, kind: str, layers: Sequence[Mapping[str, Tensor]]) -> None:
        number, _ = KINDS[kind]
        library = kernels()
        self._kept: list[Tensor] = []  # what the structures point to
        self.states: list[dict[str, Tensor]] = []
        self._layers = (_StepLayer * len(layers))()
        for place, given in enumerate(layers):
            weights = {name: value.detach().contiguous() for name, value in given.items()}
            hidden, inputs = weights["weight_hh"].shape[1], weights["weight_ih"].shape[1]
            packed = torch.empty(library.headwater_step_floats(number, inputs, hidden))
            library.headwater_pack_step(
                *(number, inputs, hidden),
                *(weights[name].data_ptr() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
                packed.data_ptr(),
            )
            memory = torch.zeros(_VECTORS, -(-hidden // _UNITS) * _UNITS)
            self.states.append({"h": memory[:1, :hidden], "c": memory[1:2, :hidden]})
            self._kept += [packed, memory]
            self._layers[place] = _StepLayer(number, inputs, hidden, packed.data_ptr(), memory.data_ptr())
        self._start, self._count, self._hidden = ctypes.addressof(self._layers), len(layers), hidden
        self._run = library.headwater_step

    def __call__(self, x_D: Tensor) -> Tensor:
        """Advance by one step: dense float32 inputs (D,) to outputs (H,)."""
        y_H = torch.empty(self._hidden)
        self._run(self._start, self._count, x_D.data_ptr(), y_H.data_ptr())
        return y_H
