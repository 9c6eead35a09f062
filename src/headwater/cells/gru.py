"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) in its two conventions.

They differ in where the reset gate acts:

- `GRU`, reset after the recurrent product (cuDNN, torch): n = tanh(W x + b + r * (U h + c));
- `ResetBeforeGRU`, reset before it (the paper, Paddle, Keras ``reset_after=False``): n = tanh(W x + b + U (r * h) + c).

In both h' = (1 - z) * n + z * h, with the gates in the order r, z, n.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.cells.base import Cell, State, last_valid


class GRU(Cell):
    """GRU with the reset after the product; equal to `torch.nn.GRU`."""

    gates = 3

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step."""
        h_BH = state["h"]
        ir, iz, in_ = F.linear(x_BD, self.weight_ih, self.bias_ih).chunk(3, -1)
        hr, hz, hn = F.linear(h_BH, self.recurrent_weight(), self.bias_hh).chunk(3, -1)
        n_BH = torch.tanh(in_ + torch.sigmoid(ir + hr) * hn)
        h_BH = torch.lerp(n_BH, h_BH, torch.sigmoid(iz + hz))
        return h_BH, {"h": h_BH}

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences."""
        state = state or self.init_state(x_BTD.shape[0])
        weights = [self.weight_ih, self.recurrent_weight(), self.bias_ih, self.bias_hh]
        y_BTH, _ = torch.gru(x_BTD, state["h"].unsqueeze(0), weights, True, 1, 0.0, self.training, False, True)
        return y_BTH, {"h": last_valid(y_BTH, lengths_B)}


class ResetBeforeGRU(Cell):
    """GRU with the reset before the product, which `torch.nn.GRU` can't express."""

    gates = 3

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Advance by one step."""
        gates_B3H = F.linear(x_BD, self.weight_ih, self.bias_ih)
        h_BH = self._advance(gates_B3H, state["h"], self.recurrent_weight())
        return h_BH, {"h": h_BH}

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences: one product for all inputs, then a loop over the steps."""
        h_BH = (state or self.init_state(x_BTD.shape[0]))["h"]
        weight_hh = self.recurrent_weight()
        outputs = []
        for gates_B3H in F.linear(x_BTD, self.weight_ih, self.bias_ih).unbind(1):
            h_BH = self._advance(gates_B3H, h_BH, weight_hh)
            outputs.append(h_BH)
        y_BTH = torch.stack(outputs, 1)
        return y_BTH, {"h": last_valid(y_BTH, lengths_B)}

    def _advance(self, gates_B3H: Tensor, h_BH: Tensor, weight_hh: Tensor) -> Tensor:
        rz = 2 * self.hidden_size
        gates_BrzH = torch.sigmoid(gates_B3H[:, :rz] + F.linear(h_BH, weight_hh[:rz], self.bias_hh[:rz]))
        r_BH, z_BH = gates_BrzH.chunk(2, -1)
        n_BH = torch.tanh(gates_B3H[:, rz:] + F.linear(r_BH * h_BH, weight_hh[rz:], self.bias_hh[rz:]))
        return torch.lerp(n_BH, h_BH, z_BH)
