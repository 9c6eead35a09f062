"""Whether an artifact computes what its model computes.

Shapes: N rows, B batch, T time, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from headwater.comparison import Comparison, agreement
from headwater.features.featurizer import Featurizer
from headwater.features.text import PAD
from headwater.inference import Runner
from headwater.model import SequenceModel
from headwater.records import Verification
from headwater.tasks.classification import torch_runner

_BATCHES, _TIMES = (1, 3, 7), (1, 5, 33, 100)


def verify(
    artifact: Runner,
    model: Runner,
    featurizer: Featurizer,
    *,
    tolerance: float,
    seed: int = 0,
    comparison: Comparison | None = None,
) -> Verification:
    """Compare an artifact with its model on ragged random batches, and on real rows where there are some.

    Each random row carries other inputs behind its length in the artifact's batch than in the model's, so
    that an artifact that reads its padding fails too.

    Args:
        artifact: What runs the artifact.
        model: What runs the model, with the weights that the artifact was made from.
        featurizer: Draws the rows.
        tolerance: Largest absolute difference of a class probability that passes.
        seed: Seeds the draws.
        comparison: The two on real rows, if there are any: then the agreement is theirs alone.

    Returns:
        The result; a number that isn't finite never passes.
    """
    pairs = []
    for inputs, other, lengths_B in random_batches(featurizer, seed):
        pairs.append((artifact(other, lengths_B), model(inputs, lengths_B)))
    batches = len(pairs)
    if comparison:
        pairs.append((comparison.after.probabilities_NK, comparison.before.probabilities_NK))
    given, expected = (np.concatenate(side) for side in zip(*pairs, strict=True))
    difference = float(np.abs(given.astype(np.float64) - expected).max())
    return Verification(
        passed=difference <= tolerance,
        batches=batches,
        rows=len(given),
        max_difference=difference,
        tolerance=tolerance,
        agreement=comparison.agreement if comparison else agreement(given, expected),
    )


def rounding(model: SequenceModel, featurizer: Featurizer, seed: int = 0) -> float:
    """Return how far float32 is from float64 in the model itself, on the batches of `verify`.

    The states of some networks grow every rounding error; no runtime can agree with them any better.

    Args:
        model: Is turned into float64.
        featurizer: As for `verify`.
        seed: As for `verify`.
    """
    run32, batches = torch_runner(model), list(random_batches(featurizer, seed))
    single = [run32(inputs, lengths_B) for inputs, _, lengths_B in batches]
    run64 = torch_runner(model.double())
    double = [run64(inputs, lengths_B) for inputs, _, lengths_B in batches]
    return max(float(np.abs(a - b).max()) for a, b in zip(single, double, strict=True))


def random_batches(featurizer: Featurizer, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield what a model reads padded with 0, the same with other padding, and lengths (B,) from 1 to T."""
    rng = np.random.default_rng([seed, 0x0E4A])
    for batch in _BATCHES:
        for time in _TIMES:
            inputs = featurizer.draw(rng, batch, time)
            lengths_B = rng.integers(1, time + 1, size=batch)
            lengths_B[0], lengths_B[1:2] = time, 1
            padding_BT = np.arange(time) >= lengths_B[:, None]
            padded = inputs.copy()
            padded[padding_BT] = PAD
            yield padded, inputs, lengths_B
