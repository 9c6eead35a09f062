"""An encoder without a head: what other people's weights become. It can be transferred, not used by itself."""

from __future__ import annotations

from typing import ClassVar, Literal, NoReturn

from torch import Tensor, nn

from headwater.axes import Axes
from headwater.data.batches import Batch
from headwater.data.examples import Examples
from headwater.errors import ConfigError
from headwater.model import Encoder, Pooling, SequenceModel
from headwater.tasks.base import Task


class Representation(Task):
    """Recurrent states and nothing more."""

    needs_labels: ClassVar[bool] = False

    name: Literal["representation"] = "representation"
    pooling: Pooling = "concat"
    """How a classifier that is made of it sums up a row's states."""

    def head(self, encoder: Encoder, dropout: float) -> nn.Module:
        """Return a head that passes the states on."""
        del encoder, dropout
        return PassOn()

    def head_axes(self, states: tuple[str, ...]) -> Axes:
        """There are no weights."""
        del states
        return {}

    def loss(self, model: SequenceModel, batch: Batch) -> NoReturn:
        """Refuse."""
        del model, batch
        raise ConfigError("a representation has no task to learn: transfer it to labelled rows first")

    def count(self, model: SequenceModel, examples: Examples, batch_size: int) -> NoReturn:
        """Refuse."""
        del model, examples, batch_size
        raise ConfigError("a representation has no figures of its own: transfer it to labelled rows first")


class PassOn(nn.Module):
    """A head without weights."""

    def forward(self, y_BTH: Tensor, lengths_B: Tensor) -> Tensor:
        """Return the states as they are."""
        del lengths_B
        return y_BTH
