"""A model is an encoder (an input side and recurrent layers) and the head of its task.

Shapes: B batch, T time, N valid steps, V vocabulary, C channels, E embedding, H hidden, R directions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
from headwater.native import Packing, pool_packed
from headwater.registry import name_in

MOST_UNITS = 16_384
"""Of a layer or an embedding: the recurrent weights of such an LSTM take 4 GiB."""
Pooling = Literal["concat", "last", "max", "mean"]
Freeze = Literal["none", "embedding", "encoder"]
FROZEN: dict[Freeze, tuple[str, ...]] = {
    "none": (),
    "embedding": ("encoder.embedding.", "encoder.projection."),
    "encoder": ("encoder.",),
}
"""How the names of the parameters begin that a choice freezes; `embedding` is the input side, of numbers too."""


class EncoderOptions(Config):
    """The shape of the encoder."""

    cell: Annotated[str, name_in("headwater.cells", CELLS)] = "lstm"
    """`lstm`, `gru`, `gru_reset_before`, `rnn`, `rnn_relu`, or a cell of a plug-in."""
    embedding_size: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 100
    """Numbers a token is embedded into, or a step's channels are projected to."""
    projection: bool = False
    """Numeric rows: give the layers a learned linear projection of each step's channels, not the channels as they
    are."""
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
    """Variational dropout on the embedded or projected rows: one mask for all steps of a row."""
    hidden_dropout: Fraction = 0.2
    """Variational dropout between recurrent layers."""
    weight_dropout: Fraction = 0.0
    """Share of the recurrent weights dropped in each step (Merity et al. 2018)."""
    head_dropout: Fraction = 0.3
    """Dropout on what the head reads."""


class Encoder(nn.Module, ABC):
    """What a modality's rows are made of, to recurrent states: an input side, and a stack that doesn't know which.

    Args:
        input_side: The modules of the input side, by name.
        options: The shape.
        dropout: How much is dropped while training.
        residual_layers: Numbers of the layers that add what they read to their outputs; see `RecurrentStack`.
        adapters: Units of the adapters; see `RecurrentStack`.
    """

    def __init__(
        self,
        input_side: Mapping[str, nn.Module],
        options: EncoderOptions,
        dropout: DropoutOptions,
        residual_layers: Collection[int] = (),
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.input_side = tuple(input_side)
        for name, module in input_side.items():
            self.add_module(name, module)
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

    @abstractmethod
    def embed(self, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Return what the first layer reads, (B, T, E) or packed (N, E), with dropout while training.

        Args:
            inputs: Padded, or packed.
            packing: Of a packed batch.
        """

    @abstractmethod
    def input_axes(self) -> Axes:
        """Return what lies along the axes of each parameter of the input side."""

    def forward(
        self, inputs: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Return the states of the last layer (B, T, R*H), unspecified on padding, and the state to go on from.

        Args:
            inputs: Token numbers (B, T) or numbers (B, T, C), padded on the right.
            lengths_B: Valid steps of each row; None where all rows are full.
            state: Where to go on from, as in `RecurrentStack.forward`.
        """
        packing = self.stack.plan(lengths_B, inputs.shape)
        if packing is None:
            out: tuple[Tensor, State] = self.stack(self.embed(inputs), lengths_B, state)
            return out
        y_NH, after = self.stack.packed(self._embed_valid(inputs, packing), packing, state)
        return packing.unpack(y_NH), after

    def valid_states(self, inputs: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last layer's states at the valid steps only, and where those are.

        Args:
            inputs: As for `forward`.
            lengths_B: Valid steps of each row.

        Returns:
            The states (N, R*H), and the place (N,) of each in the flattened batch (B*T).
        """
        packing = self.stack.plan(lengths_B, inputs.shape)
        if packing is None:
            y_BTH, _ = self(inputs, lengths_B)
            valid_BT = torch.arange(inputs.shape[1], device=y_BTH.device) < lengths_B.unsqueeze(1)
            place_N = valid_BT.flatten().nonzero().squeeze(1)
            return y_BTH.flatten(0, 1).index_select(0, place_N), place_N
        return self.stack.packed(self._embed_valid(inputs, packing), packing)[0], packing.place_N

    def pooled(self, inputs: Tensor, lengths_B: Tensor, pooling: Pooling) -> Tensor:
        """Return each row's states summed up as `pool` says; packed ones are never padded.

        Args:
            inputs: As for `forward`.
            lengths_B: Valid steps of each row.
            pooling: How.
        """
        bidirectional = self.stack.bidirectional
        packing = self.stack.plan(lengths_B, inputs.shape)
        if packing is None:
            y_BTH, _ = self(inputs, lengths_B)
            return pool(y_BTH, lengths_B, pooling, bidirectional=bidirectional)
        y_NH, _ = self.stack.packed(self._embed_valid(inputs, packing), packing)
        return pool_packed(y_NH.float(), packing, pooling, bidirectional=bidirectional)

    def _embed_valid(self, inputs: Tensor, packing: Packing) -> Tensor:
        return self.embed(inputs.flatten(0, 1).index_select(0, packing.place_N), packing)

    def _dropped(self, x: Tensor, packing: Packing | None) -> Tensor:
        share = self.dropout.input_dropout
        return locked_dropout(x, share, packing) if share and self.training else x

    def axes(self) -> Axes:
        """Return what lies along the axes of each parameter."""
        axes = self.input_axes()
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


class TokenEncoder(Encoder):
    """Tokens to recurrent states, through an embedding.

    Args:
        vocabulary_size: V.
        options: The shape.
        dropout: How much is dropped while training.
        residual_layers: As for `Encoder`.
        adapters: As for `Encoder`.
    """

    embedding: nn.Embedding

    def __init__(
        self,
        vocabulary_size: int,
        options: EncoderOptions,
        dropout: DropoutOptions,
        residual_layers: Collection[int] = (),
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        embedding = nn.Embedding(vocabulary_size, options.embedding_size, padding_idx=PAD)
        nn.init.normal_(embedding.weight, std=0.1)
        embedding.weight.data[PAD] = 0.0
        super().__init__({"embedding": embedding}, options, dropout, residual_layers, adapters)

    def embed(self, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Return the embedded tokens, (B, T, E) or packed (N, E), with dropout while training."""
        x: Tensor = self.embedding(inputs)
        if self.training and (share := self.dropout.embedding_dropout):
            keep_V = torch.empty(self.embedding.num_embeddings, device=inputs.device).bernoulli_(1 - share)
            x = x * (keep_V / (1 - share))[inputs].unsqueeze(-1)
        return self._dropped(x, packing)

    def input_axes(self) -> Axes:
        """A row a token, a column a number of the embedding."""
        return {"embedding.weight": (Axis(), Axis((EMBEDDING,)))}


class NumberEncoder(Encoder):
    """Numbers to recurrent states: a step's channels as they are, or through a linear projection.

    Args:
        channels: C.
        options: The shape; without a projection E is C.
        dropout: How much is dropped while training; of channels that come as they are, none.
        residual_layers: As for `Encoder`.
        adapters: As for `Encoder`.
    """

    def __init__(
        self,
        channels: int,
        options: EncoderOptions,
        dropout: DropoutOptions,
        residual_layers: Collection[int] = (),
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        if not options.projection and options.embedding_size != channels:
            raise ValueError(f"{channels} channels for layers that read {options.embedding_size} numbers a step")
        projection = {"projection": nn.Linear(channels, options.embedding_size)} if options.projection else {}
        super().__init__(projection, options, dropout, residual_layers, adapters)
        self.channels = channels

    def embed(self, inputs: Tensor, packing: Packing | None = None) -> Tensor:
        """Return what the first layer reads, (B, T, E) or packed (N, E), with dropout while training."""
        if inputs.shape[-1] != self.channels:
            raise ValueError(f"{inputs.shape[-1]} channels, where this encoder reads {self.channels}")
        # Rows are float32; the weights need not be.
        x = inputs.to(next(self.stack.parameters()).dtype)
        if not self.input_side:
            return x
        projected: Tensor = self.get_submodule("projection")(x)
        return self._dropped(projected.to(x.dtype), packing)

    def input_axes(self) -> Axes:
        """A row a number that is made; the channels that it is made of are no units of the model."""
        axes = {"projection.weight": (Axis((EMBEDDING,)), Axis()), "projection.bias": (Axis((EMBEDDING,)),)}
        return axes if self.input_side else {}


class PooledHead(nn.Module, ABC):
    """A head that reads one vector a row."""

    pooling: Pooling

    @abstractmethod
    def logits(self, pooled_BF: Tensor) -> Tensor:
        """Return what the head makes of pooled states."""


class SequenceModel(nn.Module):
    """An encoder and a head that reads its states.

    The parameters are named ``encoder.embedding.weight`` (of numbers ``encoder.projection.weight`` and ``.bias``, or
    nothing), ``encoder.stack.layers.0.fwd.weight_ih``, ... and ``head.*``: checkpoints, transfer, federation and
    exporters rely on these names.
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, inputs: Tensor, lengths_B: Tensor) -> Tensor:
        """Return what the head makes of the states; the inputs are (B, T) or (B, T, C)."""
        if isinstance(self.head, PooledHead):
            return self.head.logits(self.encoder.pooled(inputs, lengths_B, self.head.pooling))
        y_BTH, _ = self.encoder(inputs, lengths_B)
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
