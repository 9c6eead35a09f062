"""Whether one model is better than another on the same test rows, or only looks so.

Shapes: S seeds, N test rows.
"""

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
    same kind could move the difference, and with several seeds how far other seeds could too. Those are too few to
    draw from: each draw is moved by a deviate of Student's t with S - 1 degrees of freedom, times the standard error
    of the mean over the seeds, as in a t-test (rows and seeds are crossed random effects: Clark, "The
    language-as-fixed-effect fallacy", 1973). What differs by row and seed at once is in that error, so the rows' draws
    are drawn together until they have only the spread that the rows have by themselves (analysis of variance).
    Of a single seed nothing is known but the rows.

    Args:
        correct_a: A score per test row, 1 for right and 0 for wrong: shape (N,), or (S, N) for S seeds.
        correct_b: The same rows in the same order and the same seeds, scored by the other model.
        samples: How many times the rows are drawn.
        seed: Seeds the draws: the same input gives the same interval.

    Raises:
        DataError: There are no rows, or the two models were not scored on equally many.
    """
    a_SN, b_SN = _by_seed(correct_a), _by_seed(correct_b)
    if a_SN.shape != b_SN.shape:
        raise DataError(
            f"{' x '.join(map(str, a_SN.shape))} and {' x '.join(map(str, b_SN.shape))} scores (seeds x test rows) "
            "can't be paired: evaluate both models with the same seeds on the same rows in the same order"
        )
    if samples < 1:
        raise DataError(f"samples = {samples}: draw the rows at least once, 10 000 times is usual")
    # Rows with the same difference are interchangeable: drawing how often each difference occurs is the same
    # as drawing rows, and costs samples x (a few values) in place of samples x N.
    difference_SN = a_SN - b_SN
    seeds, rows = difference_SN.shape
    values, counts = np.unique(difference_SN.mean(axis=0), return_counts=True)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(rows, counts / rows, size=samples) @ values / rows
    mean = float(difference_SN.mean())
    if seeds > 1:
        error = difference_SN.mean(axis=1).std(ddof=1) / np.sqrt(seeds)
        share = _share_of_rows(difference_SN)
        draws = share * draws + (1 - share) * mean + error * rng.standard_t(seeds - 1, size=samples)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(mean=mean, low=float(low), high=float(high))


def _by_seed(correct: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(correct, dtype=np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise DataError(f"scores of shape {scores.shape}: give one score a test row, or one line of scores a seed")
    return np.atleast_2d(scores)


def _share_of_rows(difference_SN: NDArray[np.float64]) -> float:
    """Return how much of the spread of the rows' means over the seeds other seeds would show too, from 0 to 1."""
    seeds = len(difference_SN)
    by_seed_S1, by_row_1N = difference_SN.mean(axis=1, keepdims=True), difference_SN.mean(axis=0, keepdims=True)
    rest_SN = difference_SN - by_seed_S1 - by_row_1N + difference_SN.mean()
    noise = float((rest_SN**2).sum()) / (seeds - 1) / seeds
    spread = float(((by_row_1N - difference_SN.mean()) ** 2).sum())
    return float(np.sqrt(max(0.0, 1.0 - noise / spread))) if spread else 1.0


def verdict(interval: Interval) -> str:
    """Return ``"gain"`` or ``"loss"``, or ``"no gain shown"`` where the interval covers zero."""
    if interval.low > 0:
        return GAIN
    return LOSS if interval.high < 0 else UNDECIDED


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation, which one value doesn't have."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def over_clients(values: Sequence[float]) -> dict[str, float]:
    """Return how a figure lies over clients, each counting the same.

    The ``mean``, the ``worst`` decile's mean and the ``gap`` from one to the other, the ``spread`` (sample standard
    deviation), and the range from ``low`` to ``high``.
    """
    mean, spread = mean_and_spread(values)
    worst = worst_decile(values)
    extremes = {"low": float(min(values)), "high": float(max(values))}
    return {"mean": mean, "worst": worst, "gap": mean - worst, "spread": spread or 0.0, **extremes}


def worst_decile(values: Sequence[float]) -> float:
    """Return the mean of the lowest tenth of the values, at least one."""
    lowest = np.sort(np.asarray(values, dtype=np.float64))[: max(1, len(values) // 10)]
    return float(lowest.mean())
