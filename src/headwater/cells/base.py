"""What every cell is: weights, an explicit state, and one mathematics in two forms.

Shapes: B batch, T time, D input features, H hidden, G gates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = dict[str, Tensor]
"""A cell's memory between two steps: name to (B, H). Flat, so that it can be carried, sent and exported."""


class Cell(nn.Module, ABC):
    """One recurrent layer in one direction.

    `step` and `forward` are the same mathematics: T steps equal one forward. A device runs `step`; a trainer runs
    `forward`. Padding changes nothing: the outputs at a row's valid steps and its final state do not depend on
    what stands behind its length. The outputs at padded steps are unspecified.

    The weights have the names, the shapes and the gate order of `torch.nn` (one layer, without the suffix ``_l0``).

    Args:
        input_size: D.
        hidden_size: H.
        weight_drop: Share of the recurrent weights dropped in each training pass (DropConnect on ``weight_hh``;
            Merity et al. 2018, arXiv:1708.02182, section 2).
    """

    gates: ClassVar[int]
    """G, the blocks of rows in the weights."""
    state_names: ClassVar[tuple[str, ...]] = ("h",)
    kernel: ClassVar[str] = ""
    """Its name in `headwater.native.KINDS`, where the kernels know it. For this class alone: a derived one may have a
    mathematics of its own, which torch runs until it names a kernel too."""

    def __init__(self, input_size: int, hidden_size: int, *, weight_drop: float = 0.0) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.weight_drop = weight_drop
        rows = self.gates * hidden_size
        self.weight_ih = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih = nn.Parameter(torch.empty(rows))
        self.bias_hh = nn.Parameter(torch.empty(rows))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights: uniform for inputs, orthogonal per gate for the recurrence, zero biases.

        Orthogonal recurrence: Saxe et al. 2014, arXiv:1312.6120.
        """
        nn.init.uniform_(self.weight_ih, -1 / math.sqrt(self.hidden_size), 1 / math.sqrt(self.hidden_size))
        for block in torch.split(self.weight_hh.data, self.hidden_size):
            nn.init.orthogonal_(block)
        nn.init.zeros_(self.bias_ih)
        nn.init.zeros_(self.bias_hh)

    def init_state(self, batch_size: int) -> State:
        """Return the zero state for B rows, on the weights' device and of their type."""
        return {name: self.weight_hh.new_zeros(batch_size, self.hidden_size) for name in self.state_names}

    def recurrent_weight(self) -> Tensor:
        """Return ``weight_hh``, with weights dropped while training."""
        if self.weight_drop and self.training:
            return F.dropout(self.weight_hh, self.weight_drop)
        return self.weight_hh

    @abstractmethod
    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step; return the output (B, H) and the new state."""

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences.

        Args:
            x_BTD: Inputs, padded on the right.
            lengths_B: Valid steps of each row, at least 1; None where all rows are full.
            state: What to start from; zeros by default.

        Returns:
            The outputs (B, T, H) and the state after each row's last valid step.
        """


def last_valid(y_BTH: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Return each row's output at its last valid step, (B, H)."""
    if lengths_B is None:
        return y_BTH[:, -1]
    index_B11 = (lengths_B - 1).view(-1, 1, 1)
    return y_BTH.gather(1, index_B11.expand(-1, 1, y_BTH.shape[2])).squeeze(1)


def is_ragged(lengths_B: Tensor | None, time: int) -> bool:
    """Return whether some row ends before the last step."""
    return lengths_B is not None and bool((lengths_B < time).any())
