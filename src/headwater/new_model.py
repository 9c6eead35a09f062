"""What a new model is like: its shape, its dropout, and how it reads rows of text or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headwater.checkpoint import ModelConfig
from headwater.config import ValueColumns
from headwater.features.featurizer import FeatureOptions, Featurizer
from headwater.features.numeric import NumericOptions, WindowOptions
from headwater.features.text import TextOptions
from headwater.model import DropoutOptions, EncoderOptions


class NewModelOptions(DropoutOptions, EncoderOptions, TextOptions, WindowOptions, ValueColumns):
    """What a new model is like."""

    def features(self) -> FeatureOptions:
        """Return how the rows are to be prepared."""
        if self.values is None:
            return self.only(TextOptions)
        windows = self.only(WindowOptions).model_dump()
        return NumericOptions(**windows, max_length=self.max_length, columns=self.names)

    def config_for(self, featurizer: Featurizer, task: Mapping[str, Any]) -> ModelConfig:
        """Return the config of a model that reads what a fitted featurizer makes; `task` has the task's settings."""
        shape = self.only(EncoderOptions)
        if self.values is None:
            shape = shape.model_copy(update={"projection": False})
        elif not shape.projection:  # the layers read a number a channel
            shape = shape.model_copy(update={"embedding_size": featurizer.sizes["channels"]})
        return ModelConfig(
            **featurizer.sizes,
            encoder=shape,
            dropout=self.only(DropoutOptions),
            featurizer=featurizer.options,
            task=dict(task),
        )

    def unread(self) -> dict[str, str]:
        """Numbers have no tokens; without a projection the layers read as many as there are channels.

        A single layer has nothing between layers.
        """
        unread = super().unread() | ({"hidden_dropout": "with --layers 2 or more"} if self.layers == 1 else {})
        if self.values is None:
            return unread | dict.fromkeys((*WindowOptions.model_fields, "projection"), "with --values")
        unread |= dict.fromkeys({*TextOptions.model_fields} - {"max_length"}, "without --values")
        unread |= dict.fromkeys(("text", "embedding_dropout"), "without --values")
        unread |= {} if self.projection else dict.fromkeys(("embedding_size", "input_dropout"), "with --projection")
        return unread | ({"max_length": "without --window"} if self.window else {"stride": "with --window"})
