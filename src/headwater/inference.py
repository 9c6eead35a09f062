"""Class probabilities from a model, whatever runs it. Torch is imported only where a torch model runs.

Shapes: N rows, B batch, T time, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from headwater.errors import ConfigError
from headwater.features.text import PAD, TextFeaturizer

if TYPE_CHECKING:
    from headwater.checkpoint import Checkpoint
    from headwater.data.rows import Rows
    from headwater.model import SequenceModel

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Token numbers (B, T) and valid steps (B,), both int64, to class probabilities (B, K) in float32."""

_BATCH = 256


@dataclass(frozen=True)
class Predictor:
    """Texts in, class probabilities out: one face for checkpoints and artifacts.

    Attributes:
        labels: The labels, in the order of their numbers.
        featurizer: Prepares the texts.
        clients: The clients that it has own models of.
        run: Computes the probabilities.
    """

    labels: tuple[str, ...]
    featurizer: TextFeaturizer
    clients: tuple[str, ...]
    run: Runner

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """Return each text's class probabilities (N, K) in float32, in the order of the texts."""
        probabilities_NK = np.empty((len(texts), len(self.labels)), dtype=np.float32)
        for rows, tokens_BT, lengths_B in batches(self.featurizer.encode_all(texts)):
            probabilities_NK[rows] = self.run(tokens_BT, lengths_B)
        return probabilities_NK


def batches(
    sequences: Sequence[Sequence[int]], size: int = _BATCH
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield row numbers, padded tokens (B, T) and lengths (B,), rows of like length together."""
    lengths_N = np.array([len(row) for row in sequences], dtype=np.int64)
    order = np.argsort(lengths_N, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        tokens_BT = np.full((len(rows), lengths_N[rows].max()), PAD, dtype=np.int64)
        for place, row in enumerate(rows):
            tokens_BT[place, : lengths_N[row]] = sequences[row]
        yield rows, tokens_BT, lengths_N[rows]


def torch_runner(model: SequenceModel) -> Runner:
    """Return what runs a classifier in torch, on the CPU."""
    import torch

    model.eval()

    @torch.inference_mode()
    def run(tokens_BT: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
        logits_BK = model(torch.from_numpy(tokens_BT), torch.from_numpy(lengths_B))
        probabilities_BK: np.ndarray = logits_BK.softmax(1).numpy()
        return probabilities_BK

    return run


def checkpoint_predictor(checkpoint: Checkpoint, client: str | None = None) -> Predictor:
    """Return the predictor of a classifier, of one client's own model if asked.

    Raises:
        ConfigError: The model is no classifier.
        CheckpointError: The checkpoint knows no such client.
    """
    if not checkpoint.labels:
        raise ConfigError(
            f"a {checkpoint.config.task['name']} model has no labels to predict: "
            "transfer it to labelled rows first, and use that checkpoint"
        )
    run = torch_runner(checkpoint.model(client))
    return Predictor(checkpoint.labels, checkpoint.featurizer, tuple(sorted(checkpoint.personal)), run)


def row_probabilities(checkpoint: Checkpoint, rows: Rows) -> np.ndarray:
    """Return each row's class probabilities (N, K), by its client's own model where there is one.

    Raises:
        ConfigError: The model is no classifier.
    """
    from headwater.weights import load_weights

    model, weights = checkpoint.model(), checkpoint.weights()
    shared = replace(checkpoint_predictor(checkpoint), run=torch_runner(model))
    own = {client: found for client, found in rows.by_client().items() if client in checkpoint.personal}
    probabilities_NK = np.empty((len(rows), len(shared.labels)), dtype=np.float32)
    rest = np.setdiff1d(np.arange(len(rows)), np.concatenate([*own.values(), np.empty(0, dtype=np.int64)]))
    probabilities_NK[rest] = shared.probabilities([rows.texts[i] for i in rest])
    for client, found in own.items():
        load_weights(model, weights | checkpoint.personal[client])
        probabilities_NK[found] = shared.probabilities([rows.texts[i] for i in found])
    return probabilities_NK
