"""A model that takes a few steps on few rows, and goes back to where it was.

Shapes: B batch, F pooled features.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from headwater.config import Config
from headwater.data.batches import Batch, Shuffler, batch_of
from headwater.data.rows import Rows
from headwater.descent import sgd_step, sparse_embeddings
from headwater.features.featurizer import Featurizer
from headwater.model import SequenceModel
from headwater.tasks.classification import PooledLinear
from headwater.weights import Weights, load_weights, weights_of


class AdaptOptions(Config):
    """How a model adapts to an episode."""

    inner_steps: Annotated[int, Field(ge=1)] = 5
    """Steps of gradient descent on an episode, while learning."""
    adapt_steps: Annotated[int, Field(ge=1)] = 20
    """Steps of gradient descent on an episode, when measured."""
    inner_lr: Annotated[float, Field(gt=0.0)] = 0.3
    """Learning rate of these steps."""
    batch_size: Annotated[int, Field(ge=1)] = 10
    """Rows of such a step."""
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest L2 norm of such a step's gradient; 0 doesn't clip."""


@dataclass
class Learner:
    """A classifier that adapts to episodes.

    Attributes:
        model: Changed in place.
        featurizer: Prepares the rows.
        options: How it adapts.
        device: Where the model is.
        new_head: Whether each episode has classes of its own. The head then begins at zero in each (Kao et al. 2022,
            arXiv:2106.15367), so that nothing depends on the order of the classes; only the encoder is shared.
    """

    model: SequenceModel
    featurizer: Featurizer
    options: AdaptOptions
    device: torch.device
    new_head: bool

    @property
    def head(self) -> PooledLinear:
        """The model's head."""
        assert isinstance(self.model.head, PooledLinear)  # noqa: S101 - what classifiers have
        return self.model.head

    def shared(self) -> dict[str, nn.Parameter]:
        """Return the parameters that go from episode to episode."""
        return {n: p for n, p in self.model.named_parameters() if not (self.new_head and n.startswith("head."))}

    @contextmanager
    def trying(self) -> Iterator[Weights]:
        """Yield the weights; what is done to them until the context ends is undone."""
        before = weights_of(self.model)
        try:
            yield before
        finally:
            load_weights(self.model, before)

    def adapt(self, rows: Rows, labels: tuple[str, ...], steps: int, seed: int) -> float:
        """Take steps of gradient descent on the rows, in place; return the mean loss."""
        torch.manual_seed(seed)  # of dropout
        if self.new_head:
            nn.init.zeros_(self.head.linear.weight)
            nn.init.zeros_(self.head.linear.bias)
        batches = Shuffler(rows.encode(self.featurizer, labels), self.options.batch_size, seed)
        parameters = list(self.model.parameters())
        self.model.train()
        total = 0.0
        with sparse_embeddings(self.model):
            for step in range(steps):
                loss = self.loss(batches[step].to(self.device))
                loss.backward()  # type: ignore[no-untyped-call]
                sgd_step(parameters, self.options.inner_lr, self.options.clip)
                total += float(loss.detach())
        return total / steps

    def batch(self, rows: Rows, labels: tuple[str, ...]) -> Batch:
        """Return rows as one batch."""
        return batch_of(rows.encode(self.featurizer, labels), np.arange(len(rows))).to(self.device)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean cross entropy of a batch, in nats."""
        return F.cross_entropy(self.model(batch.inputs, batch.lengths_B).float(), batch.targets_B)

    def pooled(self, batch: Batch) -> Tensor:
        """Return the pooled states (B, F) of a batch."""
        return self.model.encoder.pooled(batch.inputs, batch.lengths_B, self.head.pooling)

    def gradients(self) -> Weights:
        """Return the gradients of the shared parameters, zero where nothing has depended on one, and clear them."""
        found = {
            name: torch.zeros_like(p, device="cpu") if p.grad is None else p.grad.cpu()
            for name, p in self.shared().items()
        }
        self.model.zero_grad(set_to_none=True)
        return found
