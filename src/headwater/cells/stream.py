"""One row, step by step, as its inputs come: a keyboard, a sensor.

Shapes: D input features, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.cells.base import State
from headwater.cells.stack import Layer, RecurrentStack
from headwater.errors import ConfigError
from headwater.native import Steps, usable


class Stream:
    """A stack that reads one row step by step, from a state that it keeps; T steps equal one `forward`.

    The weights are copied when the stream is made: what is trained later doesn't reach it. Where the kernels can be
    used then, a step through all layers is one call of theirs, over weights in the order in which it reads them; else
    it is the cells' own `step`. There is no dropout and no gradient. One thread at a time.

    Args:
        stack: One that reads forwards only.

    Raises:
        ConfigError: The stack is bidirectional.
    """

    @torch.inference_mode(mode=False)  # a state that was made in inference mode could not go on outside
    def __init__(self, stack: RecurrentStack) -> None:
        if stack.bidirectional:
            raise ConfigError(
                "a stream can't read backwards, since its end is not known: this stack is bidirectional; "
                "make one with bidirectional=False"
            )
        layers = [layer for layer in stack.layers if isinstance(layer, Layer)]
        cells = [layer.fwd for layer in layers]
        first, weight = cells[0], cells[0].weight_ih
        self._steps: Steps | _PortableSteps
        plain = all(layer.gate is None and layer.adapter is None for layer in layers)
        if plain and "kernel" in vars(type(first)) and all(map(usable, stack.parameters())):
            weights = [(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh) for cell in cells]
            self._steps = Steps(first.kernel, weights)
        else:
            self._steps = _PortableSteps(layers)
        self._state = {
            f"{number}.fwd.{name}": value
            for number, state in enumerate(self._steps.states)
            for name, value in state.items()
        }
        self._shape, self._dtype, self._device = torch.Size([first.input_size]), weight.dtype, weight.device

    def step(self, x_D: Tensor) -> Tensor:
        """Advance by one step: inputs (D,) to the last layer's outputs (H,), a tensor of their own.

        Raises:
            ValueError: The inputs have another shape or type than the stack reads.
        """
        if x_D.shape != self._shape or x_D.dtype is not self._dtype or x_D.device != self._device:
            raise ValueError(
                f"inputs {tuple(x_D.shape)} of {x_D.dtype} on {x_D.device}, where one step of this stream reads "
                f"{tuple(self._shape)} of {self._dtype} on {self._device}"
            )
        return self._steps(x_D.contiguous())

    def reset(self) -> None:
        """Go back to the zero state, in which a stream begins."""
        with torch.no_grad():
            for value in self._state.values():
                value.zero_()

    def state(self) -> State:
        """Return a copy of the state, flat as `RecurrentStack.forward` has it: ``"0.fwd.h"`` is (1, H)."""
        return {name: value.clone() for name, value in self._state.items()}

    def restore(self, state: State) -> None:
        """Go on from a state: a stream's, or of one row that `RecurrentStack.forward` has read.

        Raises:
            ValueError: It isn't a state of such a stack and of one row.
        """
        given, here = ({name: tuple(value.shape) for name, value in of.items()} for of in (state, self._state))
        if given != here:
            raise ValueError(f"a state of {given}, where this stream has {here}")
        with torch.no_grad():
            for name, value in self._state.items():
                value.copy_(state[name])


class _PortableSteps:
    """The cells' own steps in torch; in all else like `headwater.native.Steps`."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = [copy.deepcopy(layer).eval() for layer in layers]
        self.states = [layer.fwd.init_state(1) for layer in layers]

    # Not inference mode: what it returns could not be read by a head that is training.
    @torch.no_grad()
    def __call__(self, x_D: Tensor) -> Tensor:
        x_1D = x_D.unsqueeze(0)
        for layer, state in zip(self._layers, self.states, strict=True):
            y_1H, after = layer.fwd.step(x_1D, state)
            x_1D = layer.joined(x_1D, y_1H)
            for name, value in after.items():
                state[name].copy_(value)
        return x_1D[0]
