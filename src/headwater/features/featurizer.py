"""What every featurizer is: one for each modality. A checkpoint carries a fitted one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from headwater.errors import ConfigError
from headwater.features.numeric import STANDARDIZATION_FILE, NumericFeaturizer, NumericOptions
from headwater.features.text import TOKENIZER_FILE, VOCABULARY_FILE, TextFeaturizer, TextOptions

Inputs = Sequence[str | np.ndarray]
"""Rows before their preparation: all texts, or all numbers (T steps, C channels)."""
FeatureOptions = TextOptions | NumericOptions
"""How rows are prepared; the class says which modality they are of."""
FEATURE_FILES = (VOCABULARY_FILE, TOKENIZER_FILE, STANDARDIZATION_FILE)
"""Files in which featurizers keep what they have learned."""


class Featurizer(Protocol):
    """Rows of one modality to what a model reads; what it has learned comes from the training rows only."""

    modality: ClassVar[Literal["text", "numeric"]]
    unit: ClassVar[str]
    """What a row is a sequence of."""

    @property
    def options(self) -> Any:
        """One of `FeatureOptions`."""

    @property
    def sizes(self) -> dict[str, Any]:
        """How the model's config names the width of what it reads: `vocabulary_size` or `channels`."""

    def is_cut(self, row: Any) -> bool:
        """Return whether the end of a row is never read."""

    def encode_all(self, rows: Sequence[Any]) -> Sequence[Sequence[int] | np.ndarray]:
        """Return what a model reads of each row: token numbers (T,), or float32 (T, C)."""

    def draw(self, rng: np.random.Generator, batch: int, time: int) -> np.ndarray:
        """Return random rows as a model reads them, (B, T) or (B, T, C)."""

    def files(self) -> dict[str, str]:
        """Return what must be saved to have the same featurizer again: file name to content."""


def fit_featurizer(rows: Any, options: FeatureOptions) -> Featurizer:
    """Learn a featurizer from training rows.

    Raises:
        DataError: The rows are too few for a vocabulary.
    """
    if isinstance(options, NumericOptions):
        return NumericFeaturizer.fit(rows, options)
    return TextFeaturizer.fit(rows, options)


def load_featurizer(folder: Path, options: FeatureOptions) -> Featurizer:
    """Read a featurizer from a checkpoint folder.

    Raises:
        CheckpointError: A file is missing or isn't what it should be.
    """
    if isinstance(options, NumericOptions):
        return NumericFeaturizer.load(folder, options)
    return TextFeaturizer.load(folder, options)


def text_featurizer(featurizer: Featurizer) -> TextFeaturizer:
    """Return a featurizer of text as what it is.

    Raises:
        ConfigError: It isn't one.
    """
    if not isinstance(featurizer, TextFeaturizer):
        raise ConfigError("this needs a model of text, and the checkpoint's model reads numbers")
    return featurizer
