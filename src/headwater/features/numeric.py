"""Numeric sequences to standardized numbers, with each channel's mean and deviation fitted on the training rows only.

Shapes: T steps, C channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from headwater.config import Config
from headwater.errors import CheckpointError, DataError

STANDARDIZATION_FILE = "standardization.json"


class WindowOptions(Config):
    """How long recordings are cut into rows."""

    window: Annotated[int, Field(ge=0)] = 0
    """Numeric rows: cut each recording into rows of this many steps; 0 takes it whole. What doesn't fill the last
    window is left out."""
    stride: Annotated[int, Field(ge=0)] = 0
    """Steps from the beginning of a window to that of the next; 0 takes as many as `--window`."""


class NumericOptions(WindowOptions):
    """How numeric sequences are prepared."""

    max_length: Annotated[int, Field(ge=1)] = 400
    """Steps a row at most; the rest of a longer row is cut off. Windows are read whole."""
    columns: tuple[str, ...] = ()
    """Where they were read from: of several columns, the model reads a channel in the place of each."""


class NumericFeaturizer:
    """A fitted standardization.

    Args:
        options: How sequences are prepared.
        mean_C: Each channel's mean.
        deviation_C: Each channel's standard deviation, above 0.
    """

    modality: ClassVar[Literal["text", "numeric"]] = "numeric"
    unit: ClassVar[str] = "steps"

    def __init__(self, options: NumericOptions, mean_C: np.ndarray, deviation_C: np.ndarray) -> None:
        self.options = options
        self.mean_C, self.deviation_C = mean_C, deviation_C

    @classmethod
    def fit(cls, sequences: Sequence[np.ndarray], options: NumericOptions) -> NumericFeaturizer:
        """Learn the mean and deviation of each channel over all steps of the training rows that are read.

        A channel that never changes keeps its scale.

        Args:
            sequences: The rows, (T, C) each.
            options: How sequences are prepared.
        """
        read = np.concatenate([sequence[: _limit(options)] for sequence in sequences])
        mean_C, deviation_C = read.mean(0, dtype=np.float64), read.std(0, dtype=np.float64)
        # The deviation of a constant may be the rounding of its mean.
        changes_C = deviation_C > 1e-12 * np.abs(mean_C)
        return cls(options, mean_C, np.where(changes_C, deviation_C, 1.0))

    @property
    def sizes(self) -> dict[str, Any]:
        """How the model's config names the width of what it reads."""
        return {"channels": len(self.mean_C)}

    def is_cut(self, sequence: np.ndarray) -> bool:
        """Return whether a row has more than `max_length` steps, so that the rest of it is never read."""
        return len(sequence) > (_limit(self.options) or len(sequence))

    def encode(self, sequence: np.ndarray) -> np.ndarray:
        """Return a row's standardized numbers, (T, C) in float32, at most `max_length` steps.

        Raises:
            DataError: It isn't (T, C) finite numbers with the model's channels.
        """
        channels = len(self.mean_C)
        values_TC = np.asarray(sequence)
        if values_TC.dtype.kind not in "fiu" or values_TC.ndim != 2 or not len(values_TC):
            raise DataError(
                f"a row is {values_TC.dtype} of shape {values_TC.shape} where numbers (steps, channels) were expected"
            )
        if values_TC.shape[1] != channels:
            raise DataError(
                f"a row has {values_TC.shape[1]} channels where the model reads {channels}: give {channels}"
            )
        with np.errstate(over="ignore"):  # what overflows isn't finite
            standard_TC: np.ndarray = (values_TC[: _limit(self.options)] - self.mean_C) / self.deviation_C
            standard_TC = standard_TC.astype(np.float32)
        if not np.isfinite(standard_TC).all():
            raise DataError("a row holds numbers that aren't finite: fill them in or leave the row out")
        return standard_TC

    def encode_all(self, sequences: Sequence[Any]) -> list[np.ndarray]:
        """Return each row's standardized numbers."""
        return [self.encode(sequence) for sequence in sequences]

    def draw(self, rng: np.random.Generator, batch: int, time: int) -> np.ndarray:
        """Return random rows as a model reads them, float32 (B, T, C)."""
        return rng.standard_normal((batch, time, len(self.mean_C)), dtype=np.float32)

    def files(self) -> dict[str, str]:
        """Return what must be saved to have the same featurizer again: file name to content."""
        content = {"mean": self.mean_C.tolist(), "deviation": self.deviation_C.tolist()}
        return {STANDARDIZATION_FILE: json.dumps(content, indent=0) + "\n"}

    @classmethod
    def load(cls, folder: Path, options: NumericOptions) -> NumericFeaturizer:
        """Read the file of a featurizer from a checkpoint folder.

        Raises:
            CheckpointError: It is missing or isn't a standardization.
        """
        path = folder / STANDARDIZATION_FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} can't be read ({error}): the checkpoint is incomplete") from error
        both = [content.get(name) if isinstance(content, dict) else None for name in ("mean", "deviation")]
        parts: list[list[float]] = [part for part in both if isinstance(part, list) and all(map(_is_number, part))]
        if len(parts) < 2 or len(parts[0]) != len(parts[1]) or min(parts[1], default=0.0) <= 0:
            raise CheckpointError(
                f"{path} isn't a standardization: expected an object of two lists of as many numbers, mean and "
                "deviation, the latter above 0"
            )
        return cls(options, *(np.array(part, dtype=np.float64) for part in parts))


def _limit(options: NumericOptions) -> int | None:
    return None if options.window else options.max_length


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]
