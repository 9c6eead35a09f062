"""Layers of cells: one or two directions, dropout between layers, ragged lengths.

Shapes: B batch, T time, D input features, H hidden, R directions (1 or 2).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from headwater.cells import cell_class
from headwater.cells.adapter import Adapter
from headwater.cells.base import Cell, State, is_ragged
from headwater.native import Packing, RecurrentLayer, keeps_gate_gradients, usable

TALL, WIDE = 48, 256
"""Rows and units from which torch's LSTM trains as fast over full rows as the kernels do, or up to 8 % faster."""


class Layer(nn.Module):
    """A cell that reads forwards and, if bidirectional, one that reads each row backwards from its own end.

    A residual layer adds its states, each times a `gate`, to what it reads. The gates begin at zero: the layer then
    passes on what it reads, and still learns (Bachlechner et al. 2020, arXiv:2003.04887). An adapter, if there is one,
    changes what the layer passes on, not the states that it carries from step to step.
    """

    def __init__(
        self,
        cell: type[Cell],
        input_size: int,
        hidden_size: int,
        *,
        bidirectional: bool,
        weight_drop: float,
        residual: bool,
        adapter_units: int,
    ) -> None:
        super().__init__()
        self.fwd = cell(input_size, hidden_size, weight_drop=weight_drop)
        self.bwd = cell(input_size, hidden_size, weight_drop=weight_drop) if bidirectional else None
        self.gate = nn.Parameter(torch.zeros(input_size)) if residual else None
        features = hidden_size * (2 if bidirectional else 1)
        self.adapter = Adapter(features, adapter_units) if adapter_units else None

    def summed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what an adapter reads, (..., R*H): the states y, or with x if the layer is residual."""
        return y if self.gate is None else x + self.gate * y

    def joined(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the next layer reads, (..., R*H), of what this one has read and its states y."""
        summed = self.summed(x, y)
        return summed if self.adapter is None else self.adapter(summed)

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None, reversal_BT: Tensor | None, state: dict[str, State]
    ) -> tuple[Tensor, dict[str, State]]:
        """Return the outputs (B, T, R*H) and the state of each direction."""
        y_BTH, after = self.fwd(x_BTD, lengths_B, state.get("fwd"))
        if self.bwd is None:
            return y_BTH, {"fwd": after}
        back_BTH, back = self.bwd(reverse(x_BTD, reversal_BT), lengths_B, state.get("bwd"))
        return torch.cat([y_BTH, reverse(back_BTH, reversal_BT)], 2), {"fwd": after, "bwd": back}

    def packed(self, x_ND: Tensor, packing: Packing, state: dict[str, State]) -> tuple[Tensor, dict[str, State]]:
        """Return packed outputs (N, R*H) and the state of each direction."""
        y_NH, after = run_packed(self.fwd, x_ND, packing, state.get("fwd"))
        if self.bwd is None:
            return y_NH, {"fwd": after}
        back_NH, back = run_packed(self.bwd, x_ND.index_select(0, packing.mirror_N), packing, state.get("bwd"))
        return torch.cat([y_NH, back_NH.index_select(0, packing.mirror_N)], 1), {"fwd": after, "bwd": back}


class RecurrentStack(nn.Module):
    """Recurrent layers on top of each other.

    Args:
        cell: A name in the table of cells.
        input_size: D.
        hidden_size: H of each direction.
        layers: How many.
        bidirectional: Whether each layer also reads backwards. The reversal is within each row's own length, so
            padding changes nothing.
        dropout: Variational dropout on each layer's input but the first's: one mask a row for all steps
            (Gal and Ghahramani 2016, arXiv:1512.05287).
        weight_drop: See `Cell`.
        residual_layers: Numbers, from 1, of the residual layers; the first layer can't be one.
        adapters: Units of the adapter behind each layer that has one, by the layer's number from 0.
    """

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        *,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        weight_drop: float = 0.0,
        residual_layers: Collection[int] = (),
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        if any(not 1 <= number < layers for number in residual_layers):
            raise ValueError(f"residual layers {sorted(residual_layers)} of {layers}: the first one is number 1")
        self.residual_layers = frozenset(residual_layers)
        self.output_size = hidden_size * (2 if bidirectional else 1)
        self.bidirectional = bidirectional
        self.dropout = dropout
        sizes = [input_size] + [self.output_size] * (layers - 1)
        self._cell = cell_class(cell)
        self.layers = nn.ModuleList(
            Layer(
                self._cell,
                size,
                hidden_size,
                bidirectional=bidirectional,
                weight_drop=weight_drop,
                residual=number in residual_layers,
                adapter_units=adapters.get(number, 0),
            )
            for number, size in enumerate(sizes)
        )

    def init_state(self, batch_size: int) -> State:
        """Return the flat zero state of B rows."""
        state: State = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)  # noqa: S101 - what the constructor has put there
            sides = {"fwd": layer.fwd} | ({"bwd": layer.bwd} if layer.bwd else {})
            state |= _flatten({side: cell.init_state(batch_size) for side, cell in sides.items()}, number)
        return state

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences, in the kernels where `plan` says so, else in torch.

        Args:
            x_BTD: Inputs, padded on the right.
            lengths_B: Valid steps of each row; None where all rows are full.
            state: Flat: ``"0.fwd.h"`` is h of the first layer's forward cell.

        Returns:
            The outputs (B, T, R*H), unspecified on padding, and the flat state after each row's last valid step.
        """
        # Nothing is narrowed in silence: torch refuses inputs that are wider than the weights.
        if x_BTD.dtype != torch.float64 and (packing := self.plan(lengths_B, x_BTD.shape)):
            y_NF, after = self.packed(packing.pack(x_BTD.float()), packing, state)
            return packing.unpack(y_NF), after
        reversal_BT = reversal_index(lengths_B, x_BTD) if self.bidirectional else None
        after = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)  # noqa: S101 - what the constructor has put there
            dropped = number and self.dropout and self.training
            read_BTD = locked_dropout(x_BTD, self.dropout) if dropped else x_BTD
            y_BTF, states = layer(read_BTD, lengths_B, reversal_BT, _unflatten(state, number))
            x_BTD = layer.joined(x_BTD, y_BTF)
            after |= _flatten(states, number)
        return x_BTD, after

    def spaces(self) -> list[tuple[str, ...]]:
        """Return the names of the units that each layer makes; see `spaces`."""
        return spaces(len(self.layers), self.residual_layers, bidirectional=self.bidirectional)

    def plan(self, lengths_B: Tensor | None, shape: Sequence[int]) -> Packing | None:
        """Return how the kernels will hold a batch whose shape begins with B and T, or None where torch is to run it.

        Torch runs what the kernels can't, and LSTMs over full rows where oneDNN is as fast or faster: without
        gradients, and with `TALL` rows of `WIDE` units or more.
        """
        first = self.layers[0]
        assert isinstance(first, Layer)  # noqa: S101 - what the constructor has put there
        # A kernel is the mathematics of the class that names it, not of what is derived from that.
        if "kernel" not in vars(self._cell) or not usable(first.fwd.bias_hh) or not shape[0]:
            return None
        if any(module._forward_hooks or module._forward_pre_hooks for module in self.layers.modules()):  # noqa: SLF001
            return None  # they hear of calls that the kernels don't make
        large = shape[0] >= TALL and first.fwd.hidden_size >= WIDE and not keeps_gate_gradients()
        level = (large or not torch.is_grad_enabled()) and not torch.is_autocast_enabled("cpu")
        if level and self._cell.kernel == "lstm" and not is_ragged(lengths_B, shape[1]):
            return None
        return Packing.of(lengths_B, (shape[0], shape[1]))

    def packed(self, x_ND: Tensor, packing: Packing, state: State | None = None) -> tuple[Tensor, State]:
        """Run over a packed batch in the kernels; return packed outputs (N, R*H) and the flat state."""
        after: State = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)  # noqa: S101 - what the constructor has put there
            dropped = number and self.dropout and self.training
            read_ND = locked_dropout(x_ND, self.dropout, packing) if dropped else x_ND
            y_NF, states = layer.packed(read_ND, packing, _unflatten(state, number))
            x_ND = layer.joined(x_ND, y_NF)
            after |= _flatten(states, number)
        return x_ND, after


def spaces(layers: int, residual_layers: Collection[int], *, bidirectional: bool) -> list[tuple[str, ...]]:
    """Return the names of the units that each layer makes, by direction; a residual layer adds to those below."""
    sides = ("fwd", "bwd") if bidirectional else ("fwd",)
    made: list[tuple[str, ...]] = []
    for number in range(layers):
        made.append(made[-1] if number in residual_layers else tuple(f"{number}.{side}" for side in sides))
    return made


def reversal_index(lengths_B: Tensor | None, x_BTD: Tensor) -> Tensor:
    """Return for each step the step that takes its place when each row is reversed within its own length, (B, T)."""
    steps_T = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    if lengths_B is None:
        return steps_T.flip(0).expand(x_BTD.shape[0], -1)
    mirrored_BT = lengths_B.unsqueeze(1) - 1 - steps_T
    return torch.where(mirrored_BT >= 0, mirrored_BT, steps_T)


def reverse(x_BTD: Tensor, reversal_BT: Tensor | None) -> Tensor:
    """Return the rows reversed by the index of `reversal_index`; it is its own inverse."""
    assert reversal_BT is not None  # noqa: S101 - the stack makes it for every bidirectional pass
    return x_BTD.gather(1, reversal_BT.unsqueeze(2).expand_as(x_BTD))


def run_packed(cell: Cell, x_ND: Tensor, packing: Packing, state: State | None) -> tuple[Tensor, State]:
    """Run a cell over a packed batch in the kernels; return packed outputs (N, H) and the state of each row."""
    half = torch.is_autocast_enabled("cpu")
    start: list[Tensor | None] = [None]
    if state:
        given = [state[name] for name in cell.state_names]
        if any(value.shape != (packing.shape[0], cell.hidden_size) for value in given):
            shapes = [tuple(value.shape) for value in given]
            raise ValueError(f"states of shapes {shapes} for {packing.shape[0]} rows of {cell.hidden_size} units")
        start = [value.index_select(0, packing.order_B) for value in given]
    packed = RecurrentLayer.apply(  # type: ignore[no-untyped-call]
        *(cell.kernel, packing, half, x_ND, cell.weight_ih, cell.recurrent_weight(), cell.bias_ih, cell.bias_hh),
        *[*start, None][:2],
    )
    after = {name: value.index_select(0, packing.last_B) for name, value in zip(cell.state_names, packed, strict=False)}
    return packed[0], after


def locked_dropout(x: Tensor, share: float, packing: Packing | None = None) -> Tensor:
    """Drop features with one mask a row, the same at all steps (variational dropout).

    Args:
        x: (B, T, D), or (N, D) with its packing.
        share: Of the features.
        packing: Of the batch.
    """
    if packing is None:
        keep_B1D = torch.empty_like(x[:, :1]).bernoulli_(1 - share)
        return x * (keep_B1D / (1 - share))
    keep_BD = x.new_empty(packing.shape[0], x.shape[1]).bernoulli_(1 - share)
    return x * (keep_BD / (1 - share)).index_select(0, packing.row_N)


def _flatten(states: dict[str, State], layer: int) -> State:
    return {f"{layer}.{side}.{name}": value for side, state in states.items() for name, value in state.items()}


def _unflatten(state: State | None, layer: int) -> dict[str, State]:
    parts: dict[str, State] = {}
    for key, value in (state or {}).items():
        number, side, name = key.split(".")
        if int(number) == layer:
            parts.setdefault(side, {})[name] = value
    return parts
