"""Accumulators that add: the figures of merged accumulators are the figures of the pooled rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassificationCounts:
    """What classification figures are computed from.

    Attributes:
        confusion_KK: Rows by true label (first axis) and predicted label, integers.
        loss_sum: Sum of the cross entropies, in nats.
    """

    confusion_KK: np.ndarray
    loss_sum: float

    @classmethod
    def of(cls, probabilities_NK: np.ndarray, targets_N: np.ndarray) -> ClassificationCounts:
        """Count rows of class probabilities against the true labels' numbers."""
        classes = probabilities_NK.shape[1]
        confusion = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(confusion, (targets_N, probabilities_NK.argmax(1)), 1)
        chosen_N = probabilities_NK[np.arange(len(targets_N)), targets_N].astype(np.float64)
        return cls(confusion, float(-np.log(np.maximum(chosen_N, 1e-12)).sum()))

    def __add__(self, other: ClassificationCounts) -> ClassificationCounts:
        """Merge two sets of rows."""
        return ClassificationCounts(self.confusion_KK + other.confusion_KK, self.loss_sum + other.loss_sum)

    def figures(self) -> dict[str, float]:
        """Return accuracy, macro F1 (over the labels that occur or were predicted), loss in nats a row, and n."""
        total = int(self.confusion_KK.sum())
        if not total:
            return {"accuracy": 0.0, "macro_f1": 0.0, "loss": 0.0, "n": 0.0}
        hits = np.diag(self.confusion_KK)
        either = self.confusion_KK.sum(0) + self.confusion_KK.sum(1)
        f1 = 2 * hits[either > 0] / either[either > 0]
        return {
            "accuracy": float(hits.sum() / total),
            "macro_f1": float(f1.mean()),
            "loss": self.loss_sum / total,
            "n": float(total),
        }


@dataclass(frozen=True)
class TokenCounts:
    """What language-model figures are computed from.

    Attributes:
        tokens: Predicted tokens.
        hits: Tokens predicted right.
        loss_sum: Sum of the cross entropies, in nats.
    """

    tokens: int
    hits: int
    loss_sum: float

    def __add__(self, other: TokenCounts) -> TokenCounts:
        """Merge two sets of tokens."""
        return TokenCounts(self.tokens + other.tokens, self.hits + other.hits, self.loss_sum + other.loss_sum)

    def figures(self) -> dict[str, float]:
        """Return accuracy a token, loss in nats a token, perplexity, and n."""
        n = max(self.tokens, 1)
        loss = self.loss_sum / n
        return {
            "accuracy": self.hits / n,
            "loss": loss,
            "perplexity": float(np.exp(min(loss, 50.0))),
            "n": float(self.tokens),
        }
