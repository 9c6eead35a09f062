"""Predict the next token of each row, from left to right.

Shapes: B batch, T time, H features of the states, V vocabulary, E embedding.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.axes import EMBEDDING, Axes, Axis
from headwater.data.batches import Batch, batch_of
from headwater.data.examples import Examples
from headwater.features.text import BEGIN, END, PAD
from headwater.metrics import TokenCounts
from headwater.model import Encoder, SequenceModel
from headwater.native import linear_cross_entropy
from headwater.tasks.base import Task


class LanguageModeling(Task):
    """Next-token prediction within each row, which begins with ``<bos>`` and ends with ``<eos>``."""

    needs_labels: ClassVar[bool] = False
    one_direction: ClassVar[bool] = True

    name: Literal["language_modeling"] = "language_modeling"

    def head(self, encoder: Encoder, dropout: float) -> nn.Module:
        """Return a decoder whose softmax weights are the embedding's (Press and Wolf 2017, arXiv:1608.05859)."""
        return TiedDecoder(encoder, dropout)

    def head_axes(self, states: tuple[str, ...]) -> Axes:
        """The decoder is the embedding's mirror image: it reads the states, and the embedding reads what it makes."""
        mirrored = Axis((EMBEDDING,), reads=True)
        return {"bias": (Axis(),), "project.weight": (mirrored, Axis(states, reads=True)), "project.bias": (mirrored,)}

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Return the mean cross entropy a token."""
        y_NH, targets_N = self._states(model, batch)
        head = model.head
        assert isinstance(head, TiedDecoder)  # noqa: S101 - what this task's models have
        return head.loss(y_NH, targets_N)

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
            logits_NV = model.head(y_NH, targets_N)
            loss = F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")
            hits = (logits_NV.argmax(1) == targets_N).sum()
            total += TokenCounts(len(targets_N), int(hits), float(loss))
        return total

    def _states(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return states (N, H) and targets (N,) of all valid steps."""
        inputs_BT = F.pad(batch.tokens_BT, (1, 0), value=BEGIN)
        targets_BT = F.pad(batch.tokens_BT, (0, 1), value=PAD)
        targets_BT = targets_BT.scatter(1, batch.lengths_B.unsqueeze(1), END)
        y_NH, place_N = model.encoder.valid_states(inputs_BT, batch.lengths_B + 1)
        return y_NH, targets_BT.flatten()[place_N]


class TiedDecoder(nn.Module):
    """A linear map to the embedding's size, then the embedding's own rows as the softmax weights."""

    def __init__(self, encoder: Encoder, dropout: float) -> None:
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
        """Return the mean cross entropy of states' logits."""
        return linear_cross_entropy(self.project(self.dropout(y_NH)), self._embedding[0].weight, self.bias, targets_N)
