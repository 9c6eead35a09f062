"""What every task is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from torch import Tensor, nn

from headwater.axes import Axes
from headwater.config import Config
from headwater.data.batches import Batch
from headwater.data.examples import Examples
from headwater.errors import ConfigError
from headwater.model import Encoder, SequenceModel


class Counts(Protocol):
    """An accumulator of figures that adds."""

    def __add__(self, other: Any) -> Self:
        """Merge two sets of rows."""

    def figures(self) -> dict[str, float]:
        """Return the named figures; at least `loss` and `n`."""


class Task(Config):
    """A task's own settings, saved with the model, and what follows from them."""

    needs_labels: ClassVar[bool] = True
    """Whether rows carry labels."""
    one_direction: ClassVar[bool] = False
    """Whether the encoder must not read ahead."""
    best: ClassVar[tuple[str, bool]] = ("loss", False)
    """The figure that chooses the best epoch, and whether higher is better."""

    @abstractmethod
    def head(self, encoder: Encoder, dropout: float) -> nn.Module:
        """Return a fresh head that reads the encoder's states: ``head(y_BTH, lengths_B)``."""

    def head_axes(self, states: tuple[str, ...]) -> Axes:
        """Return what lies along the axes of each of the head's parameters.

        Args:
            states: The spaces of the states that it reads.

        Raises:
            ConfigError: The task doesn't say, so that the model's widths can't be changed.
        """
        del states
        raise ConfigError(f"the task {type(self).__name__} doesn't say what its head reads: add `head_axes` to it")

    @abstractmethod
    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, in nats."""

    def terms(self, lengths_B: np.ndarray) -> int:
        """Return over how many terms the loss of rows of these lengths is the mean: one a row."""
        return len(lengths_B)

    @abstractmethod
    def count(self, model: SequenceModel, examples: Examples, batch_size: int) -> Counts:
        """Return the accumulated counts of rows under a model in evaluation mode."""
