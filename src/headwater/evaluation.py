"""Figures of a model on rows, in the form that stage records carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.data.rows import Rows
from headwater.metrics import ClassificationCounts
from headwater.records import Confusion, Metrics


@dataclass(frozen=True)
class Evaluation:
    """Class probabilities of rows against their labels.

    Attributes:
        labels: The labels, in the order of their numbers.
        probabilities_NK: One row of class probabilities a row.
        targets_N: True labels' numbers.
        fingerprint: Of the rows.
    """

    labels: Sequence[str]
    probabilities_NK: np.ndarray
    targets_N: np.ndarray
    fingerprint: str

    @classmethod
    def of(cls, rows: Rows, labels: Sequence[str], probabilities_NK: np.ndarray) -> Evaluation:
        """Pair probabilities with the rows' labels.

        Raises:
            DataError: A row has a label that is not among `labels`.
        """
        targets = np.array(rows.targets(labels), dtype=np.int64)
        return cls(labels, probabilities_NK, targets, rows.fingerprint())

    def counts(self, rows: np.ndarray | slice = slice(None)) -> ClassificationCounts:
        """Return the counts of some of the rows."""
        return ClassificationCounts.of(self.probabilities_NK[rows], self.targets_N[rows])

    @property
    def hits_N(self) -> np.ndarray:  # noqa: N802 - the shape is part of the name
        """Whether the most probable label is the true one, row by row."""
        return np.asarray(self.probabilities_NK.argmax(1) == self.targets_N)

    def figures(self) -> Metrics:
        """Return accuracy, macro F1, loss and n."""
        return self.counts().figures()

    def facts(self, where: str) -> dict[str, Any]:
        """Return the fields of a stage record: figures, confusion, and what paired intervals need."""
        return {
            "metrics": {where: self.figures()},
            "confusion": Confusion(labels=list(self.labels), counts=self.counts().confusion_KK.tolist()),
            "correct": "".join("1" if hit else "0" for hit in self.hits_N),
            "test_fingerprint": self.fingerprint,
        }
