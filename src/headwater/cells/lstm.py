"""The long short-term memory (Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.cells.base import Cell, State, is_ragged, last_valid

_HOLD = 1e4
"""A gate input at which the logistic function is exactly 0 or 1 in every floating type in use."""


class LSTM(Cell):
    """LSTM; equal to `torch.nn.LSTM`. Gates in the order i, f, g, o; the state is h and c.

    The forget gate's bias starts at 1 (Jozefowicz et al. 2015).
    """

    gates = 4
    kernel = "lstm"
    state_names = ("h", "c")

    def reset_parameters(self) -> None:
        """Draw the weights; open the forget gate."""
        super().reset_parameters()
        self.bias_ih.data[self.hidden_size : 2 * self.hidden_size] = 1.0

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step."""
        gates = F.linear(x_BD, self.weight_ih, self.bias_ih)
        i, f, g, o = (gates + F.linear(state["h"], self.recurrent_weight(), self.bias_hh)).chunk(4, -1)
        c_BH = torch.sigmoid(f) * state["c"] + torch.sigmoid(i) * torch.tanh(g)
        h_BH = torch.sigmoid(o) * torch.tanh(c_BH)
        return h_BH, {"h": h_BH, "c": c_BH}

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences, in oneDNN on a CPU (a packed sequence would leave it)."""
        state = state or self.init_state(x_BTD.shape[0])
        weight_ih: Tensor = self.weight_ih
        if is_ragged(lengths_B, x_BTD.shape[1]):
            x_BTD, weight_ih = self._hold_on_padding(x_BTD, lengths_B)
        weights = [weight_ih, self.recurrent_weight(), self.bias_ih, self.bias_hh]
        start = (state["h"].unsqueeze(0), state["c"].unsqueeze(0))
        y_BTH, _, c_1BH = torch.lstm(x_BTD, start, weights, True, 1, 0.0, self.training, False, True)
        return y_BTH, {"h": last_valid(y_BTH, lengths_B), "c": c_1BH[0]}

    def _hold_on_padding(self, x_BTD: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add an input that is 1 on padding and there shuts i and opens f, so that c keeps its last valid value."""
        steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        assert lengths_B is not None  # noqa: S101 - only ragged batches come here
        padding_BT1 = (steps_T >= lengths_B.unsqueeze(1)).unsqueeze(2).to(x_BTD.dtype)
        column = self.weight_ih.new_zeros(4, self.hidden_size, 1)
        column[0], column[1] = -_HOLD, _HOLD
        return torch.cat([x_BTD, padding_BT1], 2), torch.cat([self.weight_ih, column.view(-1, 1)], 1)
