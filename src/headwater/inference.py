"""Class probabilities of rows, whatever runs the model. No torch here: an exported model runs without.

Shapes: N rows, B batch, T time, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headwater.data.examples import Examples
from headwater.features.featurizer import Featurizer, Inputs

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token numbers (B, T) in int64 or numbers (B, T, C) in float32, and valid steps (B,) in int64, to class probabilities
(B, K) in float32."""

BATCH = 256
"""Rows that are run at once."""


@dataclass(frozen=True)
class Predictor:
    """Rows in, class probabilities out: one face for checkpoints and artifacts.

    Attributes:
        labels: The labels, in the order of their numbers.
        featurizer: Prepares the rows.
        clients: The clients that it has own models of.
        run: Computes the probabilities.
    """

    labels: tuple[str, ...]
    featurizer: Featurizer
    clients: tuple[str, ...]
    run: Runner

    def probabilities(self, rows: Inputs) -> np.ndarray:
        """Return each row's class probabilities (N, K) in float32, in the order of the rows.

        Args:
            rows: Texts, or arrays of numbers (T, C), as the model reads them.
        """
        if not len(rows):
            return np.empty((0, len(self.labels)), dtype=np.float32)
        return run_all(self.run, Examples(self.featurizer.encode_all(rows)))


def run_all(run: Runner, examples: Examples, size: int = BATCH) -> np.ndarray:
    """Run batches of rows of like length; return what was made of each row (N, ...), in the order of the rows."""
    batches = list(examples.in_order(size))
    made = np.concatenate([run(*examples.padded(rows)) for rows in batches])
    in_order = np.empty_like(made)
    in_order[np.concatenate(batches)] = made
    return in_order
