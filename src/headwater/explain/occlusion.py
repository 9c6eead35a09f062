"""Occlusion: how much a prediction loses when one token is hidden. It needs nothing but predictions.

So the file that runs on the device explains itself; no gradients, no torch.

Shapes: T tokens, K classes, N rows.
"""

from __future__ import annotations

import numpy as np

from headwater.data.rows import Rows
from headwater.features.featurizer import text_featurizer
from headwater.features.text import UNKNOWN, TextFeaturizer
from headwater.inference import Predictor
from headwater.records import Example

_TOKENS = (4, 40)
"""Rows that are shown have a number of tokens in this range: long enough to say something, short enough to read."""


def occlusion(predictor: Predictor, text: str) -> tuple[list[str], np.ndarray, int, float]:
    """Weigh each token of a text (Zeiler and Fergus 2014, arXiv:1311.2901; Li et al. 2016, arXiv:1612.08220).

    Returns:
        The tokens as they are read; their weights (T,): how far the predicted label's log-odds fall when the token
        becomes the unknown one; the predicted label's number; its probability.
    """
    featurizer = text_featurizer(predictor.featurizer)
    tokens = featurizer.tokens(text)
    numbers_T = np.array(featurizer.encode(text), dtype=np.int64)
    rows_NT = np.tile(numbers_T, (len(tokens) + 1, 1))
    rows_NT[np.arange(len(tokens)), np.arange(len(tokens))] = UNKNOWN
    probabilities_NK = predictor.run(rows_NT, np.full(len(rows_NT), len(tokens), dtype=np.int64)).astype(np.float64)
    label = int(probabilities_NK[-1].argmax())
    chosen_N = np.clip(probabilities_NK[:, label], 1e-9, 1 - 1e-9)
    odds_N = np.log(chosen_N) - np.log1p(-chosen_N)
    return tokens, odds_N[-1] - odds_N[:-1], label, float(chosen_N[-1])


def examples(predictor: Predictor, rows: Rows, count: int = 6) -> list[Example]:
    """Explain some rows: for each true label the surest right ones, then the surest wrong ones.

    Args:
        predictor: What predicts.
        rows: Labelled rows.
        count: How many; a third of them wrong ones, where there are any. Of numbers none: no token can be hidden.
    """
    if not isinstance(predictor.featurizer, TextFeaturizer):
        return []
    texts, featurizer = rows.texts, predictor.featurizer
    targets_N = np.array(rows.targets(predictor.labels))
    lengths_N = np.array([len(featurizer.tokens(text)) for text in texts])
    fit_N = [int(i) for i in np.flatnonzero((lengths_N >= _TOKENS[0]) & (lengths_N <= _TOKENS[1]))]
    if not fit_N:
        return []
    probabilities_NK = predictor.probabilities([texts[i] for i in fit_N])
    right_N = probabilities_NK.argmax(1) == targets_N[fit_N]
    surest_N = np.argsort(-probabilities_NK.max(1), kind="stable")
    wrong = [fit_N[i] for i in surest_N if not right_N[i]][: count // 3]
    each = max(1, (count - len(wrong)) // len(predictor.labels))
    chosen: list[int] = []
    for label in range(len(predictor.labels)):
        chosen += [fit_N[i] for i in surest_N if right_N[i] and targets_N[fit_N[i]] == label][:each]
    return [_example(predictor, rows, int(row)) for row in [*chosen, *wrong]]


def _example(predictor: Predictor, rows: Rows, row: int) -> Example:
    tokens, weights, label, probability = occlusion(predictor, rows.texts[row])
    turned = text_featurizer(predictor.featurizer).turned
    return Example(
        tokens=turned(tokens),
        weights=turned([float(weight) for weight in weights]),
        label=rows.labels[row],
        predicted=predictor.labels[label],
        probability=probability,
    )
