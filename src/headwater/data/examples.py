"""Encoded rows of ragged lengths, and how they are padded. No torch here: a device puts rows into batches too.

Shapes: N rows, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from headwater.features.text import PAD


class Examples:
    """Encoded rows, ready to be put into batches.

    Args:
        sequences: Token numbers of each row; at least one row.
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

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows' tokens (B, T), padded on the right, and their lengths (B,), both int64."""
        lengths_B = self.lengths_N[rows]
        tokens_BT = np.full((len(rows), int(lengths_B.max())), PAD, dtype=np.int64)
        valid_BT = np.arange(tokens_BT.shape[1]) < lengths_B[:, None]
        offsets_BT = self.starts_N[rows][:, None] + np.arange(tokens_BT.shape[1])
        tokens_BT[valid_BT] = self.tokens[offsets_BT[valid_BT]]
        return tokens_BT, lengths_B

    def in_order(self, size: int) -> Iterator[np.ndarray]:
        """Yield the rows' numbers batch by batch, rows of like length together."""
        order = np.argsort(self.lengths_N, kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]
