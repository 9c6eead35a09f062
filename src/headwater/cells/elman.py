"""The simple recurrent network of Elman (1990): h' = f(W x + b + U h + c), f = tanh or ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.cells.base import Cell, State, last_valid


class SimpleRNN(Cell):
    """Elman cell with tanh; equal to `torch.nn.RNN`."""

    gates = 1
    kernel = "rnn"
    sequence: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(torch.rnn_tanh)

    def activation(self, x: Tensor) -> Tensor:
        """Return f."""
        return torch.tanh(x)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step."""
        inputs = F.linear(x_BD, self.weight_ih, self.bias_ih)
        h_BH = self.activation(inputs + F.linear(state["h"], self.recurrent_weight(), self.bias_hh))
        return h_BH, {"h": h_BH}

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences."""
        state = state or self.init_state(x_BTD.shape[0])
        weights = [self.weight_ih, self.recurrent_weight(), self.bias_ih, self.bias_hh]
        y_BTH, _ = self.sequence(x_BTD, state["h"].unsqueeze(0), weights, True, 1, 0.0, self.training, False, True)
        return y_BTH, {"h": last_valid(y_BTH, lengths_B)}


class ReLURNN(SimpleRNN):
    """Elman cell with ReLU; equal to `torch.nn.RNN` with ``nonlinearity="relu"``.

    The recurrent weights start as the identity, by which long sequences stay trainable (Le et al. 2015,
    arXiv:1504.00941).
    """

    kernel = "rnn_relu"
    sequence = staticmethod(torch.rnn_relu)

    def reset_parameters(self) -> None:
        """Draw the weights; the recurrent ones are the identity."""
        super().reset_parameters()
        nn.init.eye_(self.weight_hh)

    def activation(self, x: Tensor) -> Tensor:
        """Return f."""
        return torch.relu(x)
