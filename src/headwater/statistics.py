"""Whether one model is better than another on the same test rows, or only looks so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headwater.errors import DataError

GAIN, LOSS, UNDECIDED = "gain", "loss", "no gain shown"


@dataclass(frozen=True)
class Interval:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(correct_a: ArrayLike, correct_b: ArrayLike, *, samples: int = 10_000, seed: int = 0) -> Interval:
    """Return the difference in accuracy of two models, a minus b, with its 95 % percentile interval.

    The test rows are drawn again with replacement, `samples` times, and both models are scored on each draw
    (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13; Koehn, "Statistical
    significance tests for machine translation evaluation", 2004). The interval says how far other rows of the
    same kind could move the difference. It does not cover what further seeds could do.

    Args:
        correct_a: A score per test row, 1 for right and 0 for wrong: shape (N,), or (S, N) for S seeds, which
            are averaged row by row first.
        correct_b: The same rows in the same order, scored by the other model.
        samples: How many times the rows are drawn.
        seed: Seeds the draws: the same input gives the same interval.

    Raises:
        DataError: There are no rows, or the two models were not scored on equally many.
    """
    a, b = per_row(correct_a), per_row(correct_b)
    if a.shape != b.shape:
        raise DataError(
            f"{a.size} and {b.size} test rows can't be paired: evaluate both models on the same rows in the same order"
        )
    if samples < 1:
        raise DataError(f"samples = {samples}: draw the rows at least once, 10 000 times is usual")
    # Rows with the same difference are interchangeable: drawing how often each difference occurs is the same
    # as drawing rows, and costs samples x (a few values) in place of samples x N.
    values, counts = np.unique(a - b, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(a.size, counts / a.size, size=samples)
    low, high = np.quantile(draws @ values / a.size, [0.025, 0.975])
    return Interval(mean=float(np.mean(a - b)), low=float(low), high=float(high))


def per_row(correct: ArrayLike) -> NDArray[np.float64]:
    """Return one score a row: the mean over the seeds where there are several.

    Raises:
        DataError: There are no rows, or the shape is neither (N,) nor (S, N).
    """
    scores = np.asarray(correct, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise DataError(f"scores of shape {scores.shape}: give one score a test row, or one line of scores a seed")
    return scores if scores.ndim == 1 else scores.mean(axis=0)


def verdict(interval: Interval) -> str:
    """Return ``"gain"`` or ``"loss"``, or ``"no gain shown"`` where the interval covers zero."""
    if interval.low > 0:
        return GAIN
    return LOSS if interval.high < 0 else UNDECIDED


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which one value doesn't have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def worst_decile(values: Sequence[float]) -> float:
    """Return the mean of the lowest tenth of the values, at least one."""
    lowest = np.sort(np.asarray(values, dtype=np.float64))[: max(1, len(values) // 10)]
    return float(lowest.mean())
