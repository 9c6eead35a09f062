"""Predict the next token of each row, from left to right.

Shapes: B batch, T time, N valid steps, H features of the states, V vocabulary, E embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.axes import EMBEDDING, Axes, Axis
from headwater.cells.base import State
from headwater.cells.stack import locked_dropout
from headwater.config import Config
from headwater.data.batches import Batch, batch_of
from headwater.data.examples import Examples
from headwater.data.streams import Streams
from headwater.data_parallel import Share
from headwater.errors import ConfigError
from headwater.features.text import BEGIN, END, PAD
from headwater.metrics import TokenCounts
from headwater.model import Encoder, SequenceModel, TokenEncoder
from headwater.native import linear_cross_entropy
from headwater.tasks.base import Task
from headwater.workers import shared_weights

_STATES = 2048
"""States whose logits are worked out at once in measuring: over a large vocabulary, those of a batch take gigabytes."""


class LanguageModelingOptions(Config):
    """What the training of a language model knows beside that of any model (Merity et al. 2018, arXiv:1708.02182)."""

    bptt: Annotated[int, Field(ge=0)] = 0
    """Join the training rows into streams, carry the state on from window to window, and go back this many steps, in
    the mean, to learn (the paper takes 70); a batch is that many streams. 0 trains on rows apart."""
    ar: Annotated[float, Field(ge=0)] = 0.0
    """Activation regularization over streams: times the mean square of the states that the head reads. The paper takes
    2, over hundreds of epochs."""
    tar: Annotated[float, Field(ge=0)] = 0.0
    """Temporal activation regularization over streams: times the mean square of what a step changes in the state. The
    paper takes 1."""

    def unread(self) -> dict[str, str]:
        """Rows apart are not regularized."""
        return super().unread() | ({} if self.bptt else dict.fromkeys(("ar", "tar"), "with --bptt"))


class LanguageModeling(LanguageModelingOptions, Task):
    """Next-token prediction within each row, which begins with ``<bos>`` and ends with ``<eos>``."""

    needs_labels: ClassVar[bool] = False
    one_direction: ClassVar[bool] = True

    name: Literal["language_modeling"] = "language_modeling"
    tied: bool = True
    """Whether the decoder's softmax weights are the embedding's; else it has a row of its own for each token."""

    def head(self, encoder: Encoder, dropout: float) -> nn.Module:
        """Return a decoder; a tied one has the embedding's rows as its softmax (Press and Wolf 2017, arXiv:1608.05859).

        Raises:
            ConfigError: The encoder reads numbers.
        """
        if not isinstance(encoder, TokenEncoder):
            raise ConfigError(
                "a language model predicts tokens, and numeric rows have none: take --task classification"
            )
        return (TiedDecoder if self.tied else UntiedDecoder)(encoder, dropout)

    def head_axes(self, states: tuple[str, ...]) -> Axes:
        """A tied decoder is the embedding's mirror image: it reads the states, the embedding reads what it makes."""
        if not self.tied:
            return {"weight": (Axis(), Axis(states, reads=True)), "bias": (Axis(),)}
        mirrored = Axis((EMBEDDING,), reads=True)
        return {"bias": (Axis(),), "project.weight": (mirrored, Axis(states, reads=True)), "project.bias": (mirrored,)}

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Return the mean cross entropy a token."""
        y_NH, targets_N = self._states(model, batch)
        head = _decoder(model)
        return head.loss(head.dropout(y_NH), targets_N)

    def window_loss(
        self, model: SequenceModel, inputs_BT: Tensor, targets_BT: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """Return the mean cross entropy of a window of streams with both regularizations, and the state behind it.

        The head reads the states through variational dropout, as in the paper: one mask a stream for all steps.

        Args:
            model: Of this task.
            inputs_BT: Tokens to read.
            targets_BT: Tokens to predict.
            state: Where the streams stand, flat as in `RecurrentStack.forward`; None at their beginning.
        """
        y_BTH, after = model.encoder(inputs_BT, None, state)
        head = _decoder(model)
        read_BTH = locked_dropout(y_BTH, head.dropout.p) if model.training else y_BTH
        loss = head.loss(read_BTH.flatten(0, 1), targets_BT.flatten())
        if self.ar:
            loss = loss + self.ar * read_BTH.square().mean()
        if self.tar and y_BTH.shape[1] > 1:
            loss = loss + self.tar * y_BTH.diff(dim=1).square().mean()
        return loss, after

    def terms(self, lengths_B: np.ndarray) -> int:
        """Return the number of tokens and ends."""
        return int(lengths_B.sum()) + len(lengths_B)

    @torch.inference_mode()
    def count(self, model: SequenceModel, examples: Examples, batch_size: int) -> TokenCounts:
        """Count right tokens and sum up the loss."""
        model.eval()
        device = next(model.parameters()).device
        total = TokenCounts(0, 0, 0.0)
        for rows in examples.in_order(batch_size):
            y_NH, targets_N = self._states(model, batch_of(examples, rows).to(device))
            for some_NH, of_them_N in zip(*(torch.split(each, _STATES) for each in (y_NH, targets_N)), strict=True):
                logits_NV = model.head(some_NH, of_them_N)
                loss = F.cross_entropy(logits_NV.float(), of_them_N, reduction="sum")
                hits = (logits_NV.argmax(1) == of_them_N).sum()
                total += TokenCounts(len(of_them_N), int(hits), float(loss))
        return total

    def _states(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return states (N, H) and targets (N,) of all valid steps."""
        inputs_BT = F.pad(batch.inputs, (1, 0), value=BEGIN)
        targets_BT = F.pad(batch.inputs, (0, 1), value=PAD)
        targets_BT = targets_BT.scatter(1, batch.lengths_B.unsqueeze(1), END)
        y_NH, place_N = model.encoder.valid_states(inputs_BT, batch.lengths_B + 1)
        return y_NH, targets_BT.flatten()[place_N]


class Decoder(nn.Module, ABC):
    """What predicts tokens from states."""

    dropout: nn.Dropout

    @abstractmethod
    def loss(self, y_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Return the mean cross entropy of states' logits; the caller has dropped what is to be dropped."""


class UntiedDecoder(Decoder):
    """A linear layer: softmax weights of its own, a row a token."""

    def __init__(self, encoder: TokenEncoder, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        linear = nn.Linear(encoder.output_size, encoder.embedding.num_embeddings)
        self.weight, self.bias = linear.weight, nn.Parameter(torch.zeros_like(linear.bias))

    def forward(self, y: Tensor, lengths_B: Tensor) -> Tensor:
        """Return logits (..., V) for states (..., H)."""
        del lengths_B
        return F.linear(self.dropout(y), self.weight, self.bias)

    def loss(self, y_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Return the mean cross entropy of states' logits; the caller has dropped what is to be dropped."""
        return linear_cross_entropy(y_NH, self.weight, self.bias, targets_N)


class TiedDecoder(Decoder):
    """A linear map to the embedding's size, then the embedding's own rows as the softmax weights."""

    def __init__(self, encoder: TokenEncoder, dropout: float) -> None:
        super().__init__()
        embedding = encoder.embedding
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(encoder.output_size, embedding.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(embedding.num_embeddings))
        # A tuple hides the module, so that its weights belong to the encoder alone.
        self._embedding = (embedding,)

    def forward(self, y: Tensor, lengths_B: Tensor) -> Tensor:
        """Return logits (..., V) for states (..., H)."""
        del lengths_B
        return F.linear(self.project(self.dropout(y)), self._embedding[0].weight, self.bias)

    def loss(self, y_NH: Tensor, targets_N: Tensor) -> Tensor:
        """Return the mean cross entropy of states' logits; the caller has dropped what is to be dropped."""
        return linear_cross_entropy(self.project(y_NH), self._embedding[0].weight, self.bias, targets_N)


def _decoder(model: SequenceModel) -> Decoder:
    head = model.head
    assert isinstance(head, Decoder)  # noqa: S101 - what this task's models have
    return head


class StreamObjective:
    """A language model learns from streams: truncated back-propagation through time (Werbos 1990).

    Each window starts from the state that the last one has left, without its gradient; an epoch starts from zeros. The
    learning rate goes with a window's length, lest short windows count as much as long ones.

    Args:
        model: Of the task.
        task: With its mean window and its regularizations.
        examples: The rows that make the streams.
        batch_size: Streams of a batch.
        seed: Fixes the order of the rows and the lengths of the windows.
        device: That holds the model.
        accumulate: Batches a step.
        carry: Whether a window starts from the state that the last one has left; else from zeros.
    """

    def __init__(
        self,
        model: SequenceModel,
        task: LanguageModeling,
        examples: Examples,
        batch_size: int,
        seed: int,
        device: torch.device,
        accumulate: int = 1,
        *,
        carry: bool = True,
    ) -> None:
        self._carry = carry
        self._model, self._task, self._batch_size, self._device = model, task, batch_size, device
        count = batch_size * accumulate
        self._streams = Streams(examples, count, task.bptt, seed)
        self.steps_per_epoch = self._streams.steps_per_epoch
        # A stream's state is read and written by whichever process has the share that it is dealt into.
        self._state = shared_weights(
            {name: value.cpu() for name, value in model.encoder.stack.init_state(count).items()}
        )

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the loss of each batch of streams, by its part of them."""
        inputs_BT, targets_BT = self._streams.window(step)
        own = share.of(np.arange(len(inputs_BT)))
        for start in range(0, len(own), self._batch_size):
            part = own[start : start + self._batch_size]
            state = {name: value[part].to(self._device) for name, value in self._state.items()}
            loss, after = self._task.window_loss(
                self._model,
                torch.from_numpy(inputs_BT[part]).to(self._device),
                torch.from_numpy(targets_BT[part]).to(self._device),
                None if self._streams.begins(step) or not self._carry else state,
            )
            for name, value in after.items():
                self._state[name][part] = value.detach().to(self._state[name])
            yield loss * (len(part) / len(inputs_BT))

    def lr_factor(self, step: int) -> float:
        """Return the length of a step's window by the mean one of an epoch."""
        length: int = self._streams.window(step)[0].shape[1]
        return length / self._streams.mean_length

    def carried(self) -> State:
        """Return the streams' state, (B, H) each."""
        return self._state
