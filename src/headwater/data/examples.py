"""Encoded rows of ragged lengths, and how they are padded. No torch here: a device puts rows into batches too.

Shapes: N rows, B batch, T time, C channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from headwater.features.text import PAD


class Examples:
    """Encoded rows, ready to be put into batches.

    Args:
        sequences: What a model reads of each row: token numbers (T,), or numbers (T, C); at least one row.
        targets: Label number of each row; empty where there are none.
    """

    def __init__(self, sequences: Sequence[Sequence[int] | np.ndarray], targets: Sequence[int] = ()) -> None:
        self.lengths_N = np.array([len(row) for row in sequences], dtype=np.int64)
        inputs = np.concatenate([np.asarray(row) for row in sequences])
        self.inputs = inputs.astype(np.float32 if inputs.dtype.kind == "f" else np.int64, copy=False)
        self.starts_N = np.concatenate([[0], np.cumsum(self.lengths_N)[:-1]])
        self.targets_N = np.asarray(targets, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.lengths_N)

    def take(self, rows: np.ndarray) -> Examples:
        """Return some of the rows, in the given order."""
        chosen = [self.inputs[self.starts_N[r] : self.starts_N[r] + self.lengths_N[r]] for r in rows]
        return Examples(chosen, self.targets_N[rows] if len(self.targets_N) else ())

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows' inputs, (B, T) int64 or (B, T, C) float32, padded on the right, and their lengths (B,)."""
        lengths_B = self.lengths_N[rows]
        steps_T = np.arange(int(lengths_B.max()))
        padded = np.full((len(rows), len(steps_T), *self.inputs.shape[1:]), PAD, dtype=self.inputs.dtype)
        valid_BT = steps_T < lengths_B[:, None]
        offsets_BT = self.starts_N[rows][:, None] + steps_T
        padded[valid_BT] = self.inputs[offsets_BT[valid_BT]]
        return padded, lengths_B

    def in_order(self, size: int) -> Iterator[np.ndarray]:
        """Yield the rows' numbers batch by batch, rows of like length together."""
        order = np.argsort(self.lengths_N, kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]
