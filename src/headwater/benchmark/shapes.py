"""The layers that are measured, and how much work one training step of each is.

Shapes: N valid steps of all rows, B batch, T time, E inputs, H hidden, G gates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_FLOAT = 4  # bytes: the tensors that go in and out are float32, whatever is computed in between


@dataclass(frozen=True)
class Shape:
    """A batch and a layer; `ragged` rows have log-normal lengths, about half of T in the mean."""

    name: str
    batch: int
    time: int
    inputs: int
    hidden: int
    ragged: bool = True

    def lengths(self) -> Tensor:
        """Return the valid steps of each row (B,), always the same; the first row is full."""
        if not self.ragged:
            return torch.full((self.batch,), self.time)
        drawn_B = torch.randn(self.batch, generator=torch.Generator().manual_seed(0))
        lengths_B = (self.time * 0.45 * torch.exp(0.5 * drawn_B)).long().clamp(1, self.time)
        lengths_B[0] = self.time
        return lengths_B


SHAPES = (
    Shape("S full", 10, 80, 256, 256, ragged=False),
    Shape("S", 10, 80, 256, 256),
    Shape("M", 32, 200, 128, 256),
    Shape("XS", 10, 30, 32, 64),
    Shape("NWP", 16, 20, 96, 670),
)
STEP = Shape("step", 1, 1, 128, 256, ragged=False)
"""What a stream advances by."""


def step_flops(gates: int, shape: Shape) -> float:
    """Return the floating-point operations of one step of one row: the two matrix products, 2GH(E + H)."""
    return 2.0 * gates * shape.hidden * (shape.inputs + shape.hidden)


def training_flops(gates: int, shape: Shape) -> float:
    """Return the useful operations forward and backward: three times those forward, and none on padding."""
    return 3 * step_flops(gates, shape) * int(shape.lengths().sum())


def step_bytes(gates: int, shape: Shape) -> float:
    """Return the least traffic of a step: all weights in, then the input, the state and the output."""
    weights = gates * shape.hidden * (shape.inputs + shape.hidden + 2)
    return _FLOAT * (weights + shape.inputs + 2.0 * shape.hidden)


def training_bytes(gates: int, shape: Shape) -> float:
    """Return the least traffic of a step of training: each tensor once whenever a pass needs it.

    The weights are read forward and backward, their gradients written; for each valid step x is read twice and its
    gradient written, y is written and read and its gradient read, and the gates' values are written and read.
    """
    weights = 3.0 * gates * shape.hidden * (shape.inputs + shape.hidden + 2)
    each = 3 * shape.inputs + 3 * shape.hidden + 2 * gates * shape.hidden
    return _FLOAT * (weights + each * int(shape.lengths().sum()))
