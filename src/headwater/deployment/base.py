"""What every export target is. No torch here: the class that writes artifacts opens them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from headwater.inference import Runner

if TYPE_CHECKING:
    from headwater.checkpoint import ModelConfig
    from headwater.weights import Weights

Settings = Mapping[str, str]
"""What the runtime is told when it opens a model."""


class Target(Protocol):
    """A file format and the runtime that runs it."""

    @property
    def file(self) -> str:
        """The model's file name in the artifact."""

    @property
    def runtime(self) -> str:
        """The package that runs it."""

    def build(self, config: ModelConfig, tensors: Weights) -> bytes:
        """Return the model's file.

        Args:
            config: The shape of the model.
            tensors: The weights as they are stored: float32, or int8 beside their scales (``NAME.scale``).

        Raises:
            ExportError: The target can't express the model.
        """

    def variants(self, config: ModelConfig) -> Mapping[str, Settings]:
        """Return the ways to run a model by name, the plain one first; all give the same numbers."""

    def open(self, model: bytes, settings: Settings, threads: int) -> Runner:
        """Return what runs the model; must import neither torch nor what only building needs.

        Raises:
            CheckpointError: The runtime can't read the model.
        """
