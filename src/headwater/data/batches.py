"""Batches of ragged sequences: padded, with rows of like length together.

Packed sequences leave the fast kernels on a CPU; padding to the longest of a batch of like lengths wastes little.

Shapes: B batch, T time, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headwater.data.examples import Examples

_POOL = 32
"""Batches whose rows are sorted by length together: large enough for little padding, small enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Rows for one step.

    Attributes:
        inputs: Token numbers (B, T) or numbers (B, T, C), padded on the right with 0.
        lengths_B: Valid steps of each row, at least 1.
        targets_B: Label numbers; empty where there are none.
    """

    inputs: Tensor
    lengths_B: Tensor
    targets_B: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.inputs.to(device), self.lengths_B.to(device), self.targets_B.to(device))


def batch_of(examples: Examples, rows: np.ndarray) -> Batch:
    """Put rows into one padded batch."""
    inputs, lengths_B = examples.padded(rows)
    targets_B = examples.targets_N[rows] if len(examples.targets_N) else np.empty(0, dtype=np.int64)
    return Batch(torch.from_numpy(inputs), torch.from_numpy(lengths_B), torch.from_numpy(targets_B))


class InOrder:
    """The rows' batches in their own order, the same in every epoch.

    Args:
        examples: The rows.
        size: B.
    """

    def __init__(self, examples: Examples, size: int) -> None:
        rows = np.arange(len(examples))
        self._batches = [batch_of(examples, rows[start : start + size]) for start in range(0, len(rows), size)]
        self.steps_per_epoch = len(self._batches)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        return self._batches[step % self.steps_per_epoch]


class Shuffler:
    """Training batches in a random order that is a pure function of the seed and the step.

    Any step can be asked for directly, so an interrupted run continues without remembering what it has drawn.

    Args:
        examples: The rows.
        size: B.
        seed: Fixes all orders.
    """

    def __init__(self, examples: Examples, size: int, seed: int) -> None:
        self.examples = examples
        self.size = min(size, len(examples))
        self.seed = seed
        self.steps_per_epoch = -(-len(examples) // self.size)
        self._order = lru_cache(maxsize=1)(self._epoch_order)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over all epochs."""
        return batch_of(self.examples, self.rows(step))

    def rows(self, step: int) -> np.ndarray:
        """Return the numbers of the rows in a step's batch, shorter rows first."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[position]

    def _epoch_order(self, epoch: int) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        rows = rng.permutation(len(self.examples))
        pool = self.size * _POOL
        batches = []
        for start in range(0, len(rows), pool):
            part = rows[start : start + pool]
            part = part[np.argsort(self.examples.lengths_N[part], kind="stable")]
            batches += [part[i : i + self.size] for i in range(0, len(part), self.size)]
        return [batches[i] for i in rng.permutation(len(batches))]
