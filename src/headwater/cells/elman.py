"""The simple recurrent network of Elman (1990): h' = tanh(W x + b + U h + c)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.cells.base import Cell, State, last_valid


class SimpleRNN(Cell):
    """Elman cell with tanh; equal to `torch.nn.RNN`."""

    gates = 1

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step."""
        inputs = F.linear(x_BD, self.weight_ih, self.bias_ih)
        h_BH = torch.tanh(inputs + F.linear(state["h"], self.recurrent_weight(), self.bias_hh))
        return h_BH, {"h": h_BH}

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences."""
        state = state or self.init_state(x_BTD.shape[0])
        weights = [self.weight_ih, self.recurrent_weight(), self.bias_ih, self.bias_hh]
        y_BTH, _ = torch.rnn_tanh(x_BTD, state["h"].unsqueeze(0), weights, True, 1, 0.0, self.training, False, True)
        return y_BTH, {"h": last_valid(y_BTH, lengths_B)}
