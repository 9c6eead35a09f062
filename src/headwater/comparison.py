"""A model beside the one it was made from, on the same labelled rows.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.config import ValueColumns
from headwater.data.rows import Rows, read_rows
from headwater.errors import ConfigError
from headwater.evaluation import Evaluation
from headwater.features.featurizer import FeatureOptions
from headwater.records import Metrics


class MeasureOptions(ValueColumns):
    """Which rows to measure a model on, before and after."""

    data: str | None = None
    """Labelled rows to measure the model on: a file, or `card:NAME/SPLIT`; without it nothing is measured."""
    text: str = "text"
    """The column that holds the text."""
    label: str = "label"
    """The column that holds the label."""

    def unread(self) -> dict[str, str]:
        """Without rows nothing is measured."""
        return dict.fromkeys(("text", "label", *ValueColumns.model_fields), "with --data") if self.data is None else {}


def measuring_rows(
    options: MeasureOptions, labels: tuple[str, ...], features: FeatureOptions, client: str | None = None
) -> Rows | None:
    """Read the rows to measure on; None where none are asked.

    Args:
        options: Which rows.
        labels: The model's labels.
        features: How the model prepares rows.
        client: The column that names each row's client, if it matters.

    Raises:
        ConfigError: The model is no classifier, or reads another modality.
        DataError: The rows can't be used, or one has a label that the model doesn't know.
    """
    if options.data is None:
        return None
    if not labels:
        raise ConfigError(f"data = {options.data!r}: only a classifier can be measured here; leave --data out")
    values = options.only(ValueColumns)
    rows = read_rows(
        options.data, text=options.text, label=options.label, client=client, values=values, features=features
    )
    rows.targets(labels)
    return rows


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Attributes:
        rows: The rows.
        before: The model that the other was made from.
        after: The other one.
    """

    rows: Rows
    before: Evaluation
    after: Evaluation

    @classmethod
    def of(cls, rows: Rows, labels: tuple[str, ...], before_NK: np.ndarray, after_NK: np.ndarray) -> Comparison:
        """Pair two models' class probabilities (N, K)."""
        return cls(rows, Evaluation.of(rows, labels, before_NK), Evaluation.of(rows, labels, after_NK))

    @property
    def agreement(self) -> float:
        """Share of rows with the same predicted label."""
        return agreement(self.before.probabilities_NK, self.after.probabilities_NK)

    def facts(self) -> dict[str, Any]:
        """Return fields of a stage record; the figures `after` say the `agreement` too."""
        after: Metrics = self.after.figures()
        both = {"before": self.before.figures(), "after": after | {"agreement": self.agreement}}
        facts = self.after.facts("test")
        return facts | {"metrics": facts["metrics"] | both, "data": [self.rows.use("test")]}


def agreement(a_NK: np.ndarray, b_NK: np.ndarray) -> float:
    """Return the share of rows with the same most probable class."""
    return float((a_NK.argmax(1) == b_NK.argmax(1)).mean())
