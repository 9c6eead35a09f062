"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078) in its two conventions.

They differ in where the reset gate acts:

- `GRU`, reset after the recurrent product (cuDNN, torch): n = tanh(W x + b + r * (U h + c));
- `ResetBeforeGRU`, reset before it (the paper, Paddle, Keras ``reset_after=False``): n = tanh(W x + b + U (r * h) + c).

In both h' = (1 - z) * n + z * h, with the gates in the order r, z, n.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from headwater.cells.base import Cell, State, last_valid


class GRU(Cell):
    """GRU with the reset after the product; equal to `torch.nn.GRU`."""

    gates = 3
    kernel = "gru"

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
    kernel = "gru_reset_before"

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
        # The written-out gradient works in one type; mixed precision would hand it two.
        with torch.autocast(x_BTD.device.type, enabled=False):
            x_TBD = x_BTD.to(self.weight_ih.dtype).transpose(0, 1)
            gates_TB3H = F.linear(x_TBD, self.weight_ih, self.bias_ih)
            y_TBH: Tensor = _ResetBeforeSequence.apply(  # type: ignore[no-untyped-call]
                gates_TB3H, h_BH, self.recurrent_weight(), self.bias_hh
            )
        y_BTH = y_TBH.transpose(0, 1)
        return y_BTH, {"h": last_valid(y_BTH, lengths_B)}

    def _advance(self, gates_B3H: Tensor, h_BH: Tensor, weight_hh: Tensor) -> Tensor:
        rz = 2 * self.hidden_size
        gates_BrzH = torch.sigmoid(gates_B3H[:, :rz] + F.linear(h_BH, weight_hh[:rz], self.bias_hh[:rz]))
        r_BH, z_BH = gates_BrzH.chunk(2, -1)
        n_BH = torch.tanh(gates_B3H[:, rz:] + F.linear(r_BH * h_BH, weight_hh[rz:], self.bias_hh[rz:]))
        return torch.lerp(n_BH, h_BH, z_BH)


class _ResetBeforeSequence(torch.autograd.Function):
    """The recurrence of `ResetBeforeGRU` over T steps, with its gradient written out.

    Autograd would add to the weights' gradients at every step; here each is one product over all steps at the end.
    """

    @staticmethod
    def forward(ctx: Any, gates_TB3H: Tensor, h_BH: Tensor, weight_hh: Tensor, bias_hh: Tensor) -> Tensor:
        """Return the states (T, B, H); the gates' inputs come with the input product already in them."""
        time, batch, rows = gates_TB3H.shape
        hidden = rows // 3
        weight_rz, weight_n = weight_hh[: 2 * hidden].t(), weight_hh[2 * hidden :].t()
        a_TB3H = (gates_TB3H + bias_hh).contiguous()
        h_TBH = a_TB3H.new_empty(time + 1, batch, hidden)
        h_TBH[0] = h_BH
        rz_TB2H = a_TB3H.new_empty(time, batch, 2 * hidden)
        n_TBH, rh_TBH = a_TB3H.new_empty(time, batch, hidden), a_TB3H.new_empty(time, batch, hidden)
        for t in range(time):
            rz = torch.addmm(a_TB3H[t, :, : 2 * hidden], h_TBH[t], weight_rz, out=rz_TB2H[t]).sigmoid_()
            rh = torch.mul(rz[:, :hidden], h_TBH[t], out=rh_TBH[t])
            n = torch.addmm(a_TB3H[t, :, 2 * hidden :], rh, weight_n, out=n_TBH[t]).tanh_()
            torch.lerp(n, h_TBH[t], rz[:, hidden:], out=h_TBH[t + 1])
        ctx.save_for_backward(weight_hh, h_TBH, rz_TB2H, n_TBH, rh_TBH)
        return h_TBH[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_TBH: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the gradients of the gates' inputs, the first state, the recurrent weights and their biases."""
        weight_hh, h_TBH, rz_TB2H, n_TBH, rh_TBH = ctx.saved_tensors
        hidden = n_TBH.shape[2]
        r_TBH, z_TBH = rz_TB2H[..., :hidden], rz_TB2H[..., hidden:]
        before_TBH = h_TBH[:-1]
        # What each gate's input gets for a unit of dh, for all steps at once; only dh itself needs the loop.
        to_n_TBH = (1 - z_TBH) * (1 - n_TBH.square())
        to_z_TBH = (before_TBH - n_TBH) * z_TBH * (1 - z_TBH)
        to_r_TBH = before_TBH * r_TBH * (1 - r_TBH)
        da_TB3H = n_TBH.new_empty(*n_TBH.shape[:2], 3 * hidden)
        dh_BH = torch.zeros_like(n_TBH[0])
        for t in range(len(n_TBH) - 1, -1, -1):
            dh_BH = dh_BH + dy_TBH[t]
            dn_BH = torch.mul(dh_BH, to_n_TBH[t], out=da_TB3H[t, :, 2 * hidden :])
            drh_BH = dn_BH @ weight_hh[2 * hidden :]
            torch.mul(drh_BH, to_r_TBH[t], out=da_TB3H[t, :, :hidden])
            torch.mul(dh_BH, to_z_TBH[t], out=da_TB3H[t, :, hidden : 2 * hidden])
            carried_BH = torch.addcmul(dh_BH * z_TBH[t], drh_BH, r_TBH[t])
            dh_BH = torch.addmm(carried_BH, da_TB3H[t, :, : 2 * hidden], weight_hh[: 2 * hidden])
        flat_N3H = da_TB3H.flatten(0, 1)
        drz_weight = flat_N3H[:, : 2 * hidden].t() @ before_TBH.flatten(0, 1)
        dn_weight = flat_N3H[:, 2 * hidden :].t() @ rh_TBH.flatten(0, 1)
        return da_TB3H, dh_BH, torch.cat([drz_weight, dn_weight]), flat_N3H.sum(0)
