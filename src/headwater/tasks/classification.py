"""One label a row.

Shapes: B batch, T time, H features of the states, F pooled features, K classes, N rows.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.axes import Axes, Axis
from headwater.data.batches import Batch
from headwater.data.examples import Examples
from headwater.inference import BATCH, Runner, run_all
from headwater.metrics import ClassificationCounts
from headwater.model import Encoder, PooledHead, Pooling, SequenceModel, pool
from headwater.tasks.base import Task


class Classification(Task):
    """Classification of whole rows."""

    best: ClassVar[tuple[str, bool]] = ("accuracy", True)

    name: Literal["classification"] = "classification"
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """The labels, in the order of their numbers."""
    pooling: Pooling = "concat"
    """How a row's states become one vector."""

    def head(self, encoder: Encoder, dropout: float) -> nn.Module:
        """Return a linear head on pooled states."""
        return PooledLinear(encoder, len(self.labels), self.pooling, dropout)

    def head_axes(self, states: tuple[str, ...]) -> Axes:
        """The linear layer reads each pooling of all states."""
        read = Axis(states * (3 if self.pooling == "concat" else 1), reads=True)
        return {"linear.weight": (Axis(), read), "linear.bias": (Axis(),)}

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Return the mean cross entropy."""
        return F.cross_entropy(model(batch.inputs, batch.lengths_B).float(), batch.targets_B)

    def count(self, model: SequenceModel, examples: Examples, batch_size: int) -> ClassificationCounts:
        """Count right and wrong rows."""
        return ClassificationCounts.of(class_probabilities(model, examples, batch_size), examples.targets_N)


class PooledLinear(PooledHead):
    """Pool the valid states, then one linear layer: logits (B, K)."""

    def __init__(self, encoder: Encoder, classes: int, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        self.pooling = pooling
        self.bidirectional = encoder.stack.bidirectional
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(encoder.output_size * (3 if pooling == "concat" else 1), classes)

    def pooled(self, y_BTH: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the pooled states that the linear layer reads."""
        return pool(y_BTH, lengths_B, self.pooling, bidirectional=self.bidirectional)

    def logits(self, pooled_BF: Tensor) -> Tensor:
        """Return logits (B, K) of pooled states."""
        logits_BK: Tensor = self.linear(self.dropout(pooled_BF))
        return logits_BK

    def forward(self, y_BTH: Tensor, lengths_B: Tensor) -> Tensor:
        """Return logits (B, K)."""
        return self.logits(self.pooled(y_BTH, lengths_B))


def torch_runner(model: SequenceModel) -> Runner:
    """Return what runs a classifier in torch, on the device that holds its weights."""
    model.eval()

    @torch.inference_mode()
    def run(inputs: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        device = next(model.parameters()).device
        logits_BK = model(torch.from_numpy(inputs).to(device), torch.from_numpy(lengths_B).to(device))
        # In float32 at least: a model that computes in bfloat16 would give coarse probabilities.
        logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
        probabilities_BK: np.ndarray = logits_BK.softmax(1).cpu().numpy()
        return probabilities_BK

    return run


def class_probabilities(model: SequenceModel, examples: Examples, batch_size: int = BATCH) -> np.ndarray:
    """Return each row's class probabilities (N, K) in float32, in the order of the rows."""
    return run_all(torch_runner(model), examples, batch_size)


def pooled_states(model: SequenceModel, examples: Examples, batch_size: int = BATCH) -> np.ndarray:
    """Return what a classifier's linear layer reads, (N, F) in float64, F pooled features."""
    model.eval()
    device = next(model.parameters()).device
    head = model.head
    assert isinstance(head, PooledLinear)  # noqa: S101 - what this task's models have

    @torch.inference_mode()
    def run(inputs: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        lengths = torch.from_numpy(lengths_B).to(device)
        pooled_BF = model.encoder.pooled(torch.from_numpy(inputs).to(device), lengths, head.pooling)
        as_read_BF: np.ndarray = pooled_BF.double().cpu().numpy()
        return as_read_BF

    return run_all(run, examples, batch_size)
