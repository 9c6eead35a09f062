"""Accumulators that add: the figures of merged accumulators are the figures of the pooled rows.

Shapes: N rows, K classes, S bins of scores, P bins of probabilities.
"""

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


_SCORES, _LARGEST = 1024, 16.0
"""Bins of log-odds, and the largest of them: beyond it float32 can't tell a probability from 1."""
_PROBABILITIES = 15
"""Bins of the calibration error, as in Guo et al. 2017."""


@dataclass(frozen=True)
class ScoreCounts:
    """How a classifier's probabilities lie: what ROC curves, their areas and the calibration are computed from.

    Attributes:
        scores_K2S: Rows by class, by whether they are of another class (0) or of it (1), and by the bin of the class's
            log-odds, integers. Rows in one bin count as tied.
        trust_3P: By bin of the predicted label's probability: rows, right rows, and the sum of those probabilities.
    """

    scores_K2S: np.ndarray
    trust_3P: np.ndarray

    @classmethod
    def of(cls, probabilities_NK: np.ndarray, targets_N: np.ndarray) -> ScoreCounts:
        """Count rows of class probabilities against the true labels' numbers."""
        classes = probabilities_NK.shape[1]
        # Of a model that has diverged the loss speaks.
        probabilities_NK = np.nan_to_num(probabilities_NK, posinf=1.0, neginf=0.0)
        p_NK = np.clip(probabilities_NK.astype(np.float64), 1e-12, 1 - 1e-12)
        log_odds_NK = np.clip(np.log(p_NK) - np.log1p(-p_NK), -_LARGEST, _LARGEST)
        bins_NK = np.minimum((log_odds_NK + _LARGEST) * (_SCORES / (2 * _LARGEST)), _SCORES - 1).astype(np.int64)
        theirs_NK = targets_N[:, None] == np.arange(classes)
        places_NK = (2 * np.arange(classes) + theirs_NK) * _SCORES + bins_NK
        scores = np.bincount(places_NK.ravel(), minlength=2 * classes * _SCORES)
        sure_N = probabilities_NK.max(1).astype(np.float64)
        trust_N = np.minimum(sure_N * _PROBABILITIES, _PROBABILITIES - 1).astype(np.int64)
        weights = (None, probabilities_NK.argmax(1) == targets_N, sure_N)
        trust = [np.bincount(trust_N, weight, minlength=_PROBABILITIES) for weight in weights]
        return cls(scores.reshape(classes, 2, _SCORES), np.stack(trust))

    def __add__(self, other: ScoreCounts) -> ScoreCounts:
        """Merge two sets of rows."""
        return ScoreCounts(self.scores_K2S + other.scores_K2S, self.trust_3P + other.trust_3P)

    def roc(self, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ROC curve of one class against the others: shares of false and of true positives, rising."""
        from_top_2S = self.scores_K2S[label, :, ::-1].cumsum(1)
        shares_2S = from_top_2S / np.maximum(from_top_2S[:, -1:], 1)
        return np.append(0.0, shares_2S[0]), np.append(0.0, shares_2S[1])

    def auc(self) -> tuple[float, float] | None:
        """Return the area under the ROC curve, and how far it may be from that of the scores as they were.

        Of two classes the second's, of more the mean over the classes (one against the rest); classes that all rows or
        no rows are of are left out. None where none is left.
        """
        areas, errors = [], []
        for others_S, theirs_S in self.scores_K2S[1 if len(self.scores_K2S) == 2 else 0 :].astype(np.float64):
            if pairs := others_S.sum() * theirs_S.sum():
                ties = float(theirs_S @ others_S)
                below_S = others_S.cumsum() - others_S
                areas.append((float(theirs_S @ below_S) + ties / 2) / pairs)
                errors.append(ties / 2 / pairs)
        return (float(np.mean(areas)), float(np.mean(errors))) if areas else None

    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for each bin that has rows, mean probability of the predicted label, accuracy, and rows."""
        rows_P, right_P, sure_P = self.trust_3P[:, self.trust_3P[0] > 0]
        return sure_P / rows_P, right_P / rows_P, rows_P

    def figures(self) -> dict[str, float]:
        """Return the area under the ROC curve (`auc`) and the expected calibration error (`ece`).

        The latter is the mean distance of accuracy and probability over the bins, by their rows (Guo et al. 2017,
        arXiv:1706.04599, equation 3).
        """
        sure, accuracy, rows = self.reliability()
        if not len(rows):
            return {}
        area = self.auc()
        ece = float(np.abs(sure - accuracy) @ rows / rows.sum())
        return ({"auc": area[0]} if area else {}) | {"ece": ece}


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
