"""Rows joined into long streams that are read side by side, window after window.

Shapes: B streams, T steps of a window, L steps of a stream, S windows of an epoch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from headwater.data.examples import Examples
from headwater.errors import DataError
from headwater.features.text import BEGIN, END

_HALVED = 0.05
"""Share of the windows that are half as long."""
_DEVIATION = 1 / 14
"""Standard deviation of a window's length over the mean one, and the shortest one: the paper's 5 steps of 70."""


class Streams:
    """Windows over streams of rows; what is learned goes back to a window's beginning, the state is to be carried on.

    In each epoch the rows, in an order of its own, are joined into one line, and that is cut into B streams of L steps;
    fewer than B steps are left over. A step reads ``<bos>`` or a row's token and is to predict the token after it or
    ``<eos>``, as when rows stand apart.

    The windows' lengths are drawn as in Merity et al. 2018 (arXiv:1708.02182, section 5), so that no step stands at a
    window's edge in every epoch, and then stretched a little to fill the epoch: it always has the same number of
    windows. All is a pure function of the seed and the step, so any step can be asked for directly.

    Args:
        examples: The rows.
        count: B.
        bptt: The mean length of a window that isn't halved, at least 1.
        seed: Fixes all orders and lengths.

    Raises:
        DataError: There are too few tokens.
    """

    def __init__(self, examples: Examples, count: int, bptt: int, seed: int) -> None:
        steps = len(examples.inputs) + len(examples)
        if steps < count:
            raise DataError(
                f"the training rows have {steps} tokens and ends, which make no {count} streams: "
                "lower --batch-size or --accumulate, or give more rows"
            )
        self._examples = examples
        self._count = count
        self._seed = seed
        self._length = steps // count
        self.steps_per_epoch = min(self._length, max(1, round(self._length / (bptt * (1 - _HALVED / 2)))))
        self.mean_length = self._length / self.steps_per_epoch
        self._epoch = lru_cache(maxsize=1)(self._read_epoch)

    def window(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return what a step reads and what it is to predict, (B, T) each; steps are counted over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        inputs_BL, targets_BL, edges = self._epoch(epoch)
        here = slice(edges[position], edges[position + 1])
        return inputs_BL[:, here], targets_BL[:, here]

    def begins(self, step: int) -> bool:
        """Return whether the streams begin with this step, so that there is no state to go on from."""
        return step % self.steps_per_epoch == 0

    def _read_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, epoch])
        rows = self._examples.take(rng.permutation(len(self._examples)))
        shape = (self._count, self._length)
        inputs, targets = (
            np.insert(rows.inputs, places, token)[: shape[0] * shape[1]].reshape(shape)
            for places, token in ((rows.starts_N, BEGIN), (rows.starts_N + rows.lengths_N, END))
        )
        return inputs, targets, self._edges(rng)

    def _edges(self, rng: np.random.Generator) -> np.ndarray:
        """Return where the windows begin, and where the last one ends, (S + 1,)."""
        count = self.steps_per_epoch
        drawn_S = rng.normal(np.where(rng.random(count) < _HALVED, 0.5, 1.0), _DEVIATION).clip(min=_DEVIATION)
        parts_S = drawn_S.cumsum()
        # Each window has a step of its own; the others are dealt out by what was drawn.
        ends_S = np.arange(1, count + 1) + np.floor(parts_S / parts_S[-1] * (self._length - count)).astype(np.int64)
        return np.concatenate([[0], ends_S])
