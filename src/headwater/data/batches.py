"""Batches of ragged sequences: padded, with rows of like length together.

Packed sequences leave the fast kernels on a CPU; padding to the longest of a batch of like lengths wastes little.

Shapes: B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from headwater.features.text import PAD

_POOL = 32
"""Batches whose rows are sorted by length together: large enough for little padding, small enough to stay random."""


@dataclass(frozen=True)
class Batch:
    """Rows for one step.

    Attributes:
        tokens_BT: Token numbers, padded on the right with 0.
        lengths_B: Valid tokens of each row, at least 1.
        targets_B: Label numbers; empty where there are none.
    """

    tokens_BT: Tensor
    lengths_B: Tensor
    targets_B: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(self.tokens_BT.to(device), self.lengths_B.to(device), self.targets_B.to(device))


class Examples:
    """Encoded rows, ready to be put into batches.

    Args:
        sequences: Token numbers of each row.
        targets: Label number of each row; empty where there are none.
    """

    def __init__(self, sequences: Sequence[Sequence[int] | np.ndarray], targets: Sequence[int] = ()) -> None:
        self.lengths_N = np.array([len(row) for row in sequences], dtype=np.int64)
        self.tokens = np.concatenate([np.asarray(row, dtype=np.int64) for row in sequences])
        self.starts_N = np.concatenate([[0], np.cumsum(self.lengths_N)[:-1]])
        self.targets_N = np.asarray(targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def take(self, rows: np.ndarray) -> Examples:
        """Return some of the rows, in the given order."""
        chosen = [self.tokens[self.starts_N[r] : self.starts_N[r] + self.lengths_N[r]] for r in rows]
        return Examples(chosen, self.targets_N[rows] if len(self.targets_N) else ())

    def batch(self, rows: np.ndarray) -> Batch:
        """Put rows into one padded batch."""
        lengths_B = self.lengths_N[rows]
        tokens_BT = np.full((len(rows), int(lengths_B.max())), PAD, dtype=np.int64)
        valid_BT = np.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        offsets_BT = self.starts_N[rows][:, None] + np.arange(tokens_BT.shape[1])
        tokens_BT[valid_BT] = self.tokens[offsets_BT[valid_BT]]
        targets_B = self.targets_N[rows] if len(self.targets_N) else np.empty(0, dtype=np.int64)
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(lengths_B), torch.from_numpy(targets_B))

    def in_order(self, size: int) -> Iterator[tuple[np.ndarray, Batch]]:
        """Yield batches for evaluation, rows of like length together, with the rows' numbers."""
        order = np.argsort(self.lengths_N, kind="stable")
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, self.batch(rows)


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
        epoch, position = divmod(step, self.steps_per_epoch)
        return self.examples.batch(self._order(epoch)[position])

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
