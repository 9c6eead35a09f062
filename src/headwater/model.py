"""A model is an encoder (embedding and recurrent layers) and the head of its task.

Shapes: B batch, T time, V vocabulary, E embedding, H hidden, R directions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from headwater.axes import EMBEDDING, Axes, Axis
from headwater.cells import CELLS
from headwater.cells.adapter import units_of
from headwater.cells.base import State
from headwater.cells.stack import Layer, RecurrentStack, locked_dropout
from headwater.config import Config, Fraction
from headwater.features.text import PAD
from headwater.native import Packing
from headwater.registry import name_in

MOST_UNITS = 16_384
"""Of a layer or an embedding: the recurrent weights of such an LSTM take 4 GiB."""
Pooling = Literal["concat", "last", "max", "mean"]


class EncoderOptions(Config):
    """The shape of the encoder."""

    cell: Annotated[str, name_in("headwater.cells", CELLS)] = "lstm"
    """`lstm`, `gru`, `gru_reset_before`, `rnn`, `rnn_relu`, or a cell of a plug-in."""
    embedding_size: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 100
    """Numbers a token is embedded into."""
    hidden_size: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 128
    """Units of each recurrent layer and direction."""
    layers: Annotated[int, Field(ge=1)] = 1
    """Recurrent layers."""
    bidirectional: bool = True
    """Read each row in both directions; a language model and a stream need one direction."""


class DropoutOptions(Config):
    """Dropout of the kinds that work for recurrent networks."""

    embedding_dropout: Fraction = 0.1
    """Share of the vocabulary's rows dropped in each step (Gal and Ghahramani 2016)."""
    input_dropout: Fraction = 0.2
    """Variational dropout on the embedded rows: one mask for all steps of a row."""
    hidden_dropout: Fraction = 0.2
    """Variational dropout between recurrent layers."""
    weight_dropout: Fraction = 0.0
    """Share of the recurrent weights dropped in each step (Merity et al. 2018)."""
    head_dropout: Fraction = 0.3
    """Dropout on what the head reads."""


class Encoder(nn.Module):
    """Tokens to recurrent states.

    Args:
        vocabulary_size: V.
        options: The shape.
        dropout: How much is dropped while training.
        residual_layers: Numbers of the layers that add what they read to their outputs; see `RecurrentStack`.
        adapters: Units of the adapters; see `RecurrentStack`.
    """

    def __init__(
        self,
        vocabulary_size: int,
        options: EncoderOptions,
        dropout: DropoutOptions,
        residual_layers: Collection[int] = (),
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.embedding = nn.Embedding(vocabulary_size, options.embedding_size, padding_idx=PAD)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.embedding.weight.data[PAD] = 0.0
        self.stack = RecurrentStack(
            options.cell,
            options.embedding_size,
            options.hidden_size,
            layers=options.layers,
            bidirectional=options.bidirectional,
            dropout=dropout.hidden_dropout,
            weight_drop=dropout.weight_dropout,
            residual_layers=residual_layers,
            adapters=adapters,
        )
        self.output_size = self.stack.output_size

    def forward(
        self, tokens_BT: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Return the states of the last layer (B, T, R*H), unspecified on padding, and the state to go on from."""
        packing = self.stack.plan(lengths_B, tokens_BT.shape)
        if packing is None:
            out: tuple[Tensor, State] = self.stack(self.embed(tokens_BT), lengths_B, state)
            return out
        x_NE = self.embed(tokens_BT.flatten()[packing.place_N], packing)
        y_NH, after = self.stack.packed(x_NE, packing, state)
        return packing.unpack(y_NH), after

    def valid_states(self, tokens_BT: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last layer's states at the valid steps only, and where those are.

        Returns:
            The states (N, R*H), and the place (N,) of each in the flattened batch (B*T).
        """
        packing = self.stack.plan(lengths_B, tokens_BT.shape)
        if packing is None:
            y_BTH, _ = self(tokens_BT, lengths_B)
            valid_BT = torch.arange(tokens_BT.shape[1], device=y_BTH.device) < lengths_B.unsqueeze(1)
            place_N = valid_BT.flatten().nonzero().squeeze(1)
            return y_BTH.flatten(0, 1).index_select(0, place_N), place_N
        x_NE = self.embed(tokens_BT.flatten()[packing.place_N], packing)
        return self.stack.packed(x_NE, packing)[0], packing.place_N

    def embed(self, tokens: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the embedded tokens, (B, T, E) or packed (N, E), with dropout while training."""
        x: Tensor = self.embedding(tokens)
        if not self.training:
            return x
        if share := self.dropout.embedding_dropout:
            keep_V = torch.empty(self.embedding.num_embeddings, device=tokens.device).bernoulli_(1 - share)
            x = x * (keep_V / (1 - share))[tokens].unsqueeze(-1)
        return locked_dropout(x, self.dropout.input_dropout, packing) if self.dropout.input_dropout else x

    def axes(self) -> Axes:
        """Return what lies along the axes of each parameter."""
        axes: Axes = {"embedding.weight": (Axis(), Axis((EMBEDDING,)))}
        read: tuple[str, ...] = (EMBEDDING,)
        for number, (layer, made) in enumerate(zip(self.stack.layers, self.stack.spaces(), strict=True)):
            assert isinstance(layer, Layer)  # noqa: S101 - what the stack has put there
            for side, own in zip(("fwd", "bwd"), made, strict=False):
                gates = Axis((own,) * layer.fwd.gates)
                axes |= {
                    f"stack.layers.{number}.{side}.weight_ih": (gates, Axis(read, reads=True)),
                    f"stack.layers.{number}.{side}.weight_hh": (gates, Axis((own,), reads=True)),
                    f"stack.layers.{number}.{side}.bias_ih": (gates,),
                    f"stack.layers.{number}.{side}.bias_hh": (gates,),
                }
            if layer.gate is not None:
                axes[f"stack.layers.{number}.gate"] = (Axis(made),)
            if layer.adapter is not None:
                units = units_of(number)
                axes |= {
                    f"stack.layers.{number}.adapter.down.weight": (Axis((units,)), Axis(made, reads=True)),
                    f"stack.layers.{number}.adapter.down.bias": (Axis((units,)),),
                    f"stack.layers.{number}.adapter.up.weight": (Axis(made), Axis((units,), reads=True)),
                    f"stack.layers.{number}.adapter.up.bias": (Axis(made),),
                }
            read = made
        return axes


class SequenceModel(nn.Module):
    """An encoder and a head that reads its states.

    The parameters are named ``encoder.embedding.weight``, ``encoder.stack.layers.0.fwd.weight_ih``, ... and
    ``head.*``: checkpoints, transfer, federation and exporters rely on these names.
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return what the head makes of the states."""
        y_BTH, _ = self.encoder(tokens_BT, lengths_B)
        out: Tensor = self.head(y_BTH, lengths_B)
        return out


def pool(y_BTH: Tensor, lengths_B: Tensor, pooling: Pooling, *, bidirectional: bool) -> Tensor:
    """Sum up a row's states over its valid steps.

    Args:
        y_BTH: States (B, T, R*H).
        lengths_B: Valid steps.
        pooling: `last` (the state after the whole row has been read: for the backward direction that is at the
            first step), `max`, `mean`, or `concat` of the three (Howard and Ruder 2018, arXiv:1801.06146).
        bidirectional: Whether the second half of the features was read backwards.

    Returns:
        (B, R*H), or (B, 3*R*H) for `concat`.
    """
    valid_BT1 = (torch.arange(y_BTH.shape[1], device=y_BTH.device) < lengths_B.unsqueeze(1)).unsqueeze(2)
    parts = []
    if pooling in ("last", "concat"):
        last_BH = y_BTH.gather(1, (lengths_B - 1).view(-1, 1, 1).expand(-1, 1, y_BTH.shape[2])).squeeze(1)
        if bidirectional:
            half = y_BTH.shape[2] // 2
            last_BH = torch.cat([last_BH[:, :half], y_BTH[:, 0, half:]], 1)
        parts.append(last_BH)
    if pooling in ("max", "concat"):
        parts.append(y_BTH.masked_fill(~valid_BT1, -torch.inf).amax(1))
    if pooling in ("mean", "concat"):
        parts.append(y_BTH.masked_fill(~valid_BT1, 0.0).sum(1) / lengths_B.unsqueeze(1).to(y_BTH.dtype))
    return torch.cat(parts, 1)
