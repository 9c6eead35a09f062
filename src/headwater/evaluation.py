"""Figures of a model on rows, in the form that stage records carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headwater.data.rows import Rows
from headwater.metrics import ClassificationCounts, ScoreCounts
from headwater.records import Confusion, Curve, Metrics, Scores

_MOST_CURVES, _POINTS = 6, 101
"""ROC curves in a record, and points of each."""


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

    def scores(self, rows: np.ndarray | slice = slice(None)) -> ScoreCounts:
        """Return the scores of some of the rows."""
        return ScoreCounts.of(self.probabilities_NK[rows], self.targets_N[rows])

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


def score_record(scores: ScoreCounts, labels: Sequence[str]) -> Scores | None:
    """Return what the report draws of scores; None where all rows are of one class."""
    if not (area := scores.auc()):
        return None
    frequent = np.argsort(-scores.scores_K2S[:, 1].sum(1), kind="stable")[:_MOST_CURVES]
    curves = []
    for label in [1] if len(labels) == 2 else sorted(frequent):
        x, y = scores.roc(label)
        # Evenly along the curve, which never falls and always ends in (1, 1).
        kept = np.unique(np.searchsorted(x + y, np.linspace(0, x[-1] + y[-1], _POINTS)))
        curves.append(Curve(name=labels[label], x_label="false positives", x=x[kept].tolist(), y=y[kept].tolist()))
    sure, accuracy, rows = scores.reliability()
    trust = Curve(name="accuracy", x_label="probability", x=sure.tolist(), y=accuracy.tolist())
    return Scores(roc=curves, auc_error=area[1], reliability=trust, rows=rows.astype(int).tolist())
