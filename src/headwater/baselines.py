"""What a model must beat to be worth anything.

For a classifier the most frequent label, and a linear model: of texts on word counts, of numbers on each channel's
summary; for a language model how often each token occurs.

Shapes: N rows, T steps, C channels, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from headwater.data.examples import Examples
from headwater.data.rows import Rows
from headwater.features.featurizer import Featurizer, Inputs, text_featurizer
from headwater.features.text import END
from headwater.metrics import ClassificationCounts, TokenCounts
from headwater.records import Metrics


def baselines(
    train: Rows,
    test: Rows,
    labels: Sequence[str],
    featurizer: Featurizer,
    *,
    file_labels: Sequence[str] = (),
) -> dict[str, Metrics]:
    """Return the figures of both baselines on the test rows, trained on the same rows as the model.

    The majority is that of `file_labels`, all rows of the training file, where they are given: rows that are drawn
    evenly over the labels have none.

    The linear model of texts is logistic regression on TF-IDF of the model's own tokens and their pairs, with the
    settings that scikit-learn's users take (sublinear counts, C = 10). That of numbers is one on each channel's mean,
    deviation, least, largest and last number over the steps that the model reads, each standardized over the rows.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    train_N = np.array([numbers[label] for label in train.labels])
    test_N = np.array([numbers[label] for label in test.labels])
    known_N = np.array([numbers[label] for label in file_labels or train.labels])
    share_K = np.bincount(known_N, minlength=len(labels)) / len(known_N)
    out = {"majority": ClassificationCounts.of(np.tile(share_K, (len(test_N), 1)), test_N).figures()}
    name, linear = _LINEAR[featurizer.modality](featurizer)
    linear.fit(train.inputs, train_N)
    probabilities_NK = np.zeros((len(test_N), len(labels)))
    probabilities_NK[:, linear.classes_] = linear.predict_proba(test.inputs)
    out[name] = ClassificationCounts.of(probabilities_NK, test_N).figures()
    return out


def _of_texts(featurizer: Featurizer) -> tuple[str, Pipeline]:
    tokens = text_featurizer(featurizer).tokens
    counts = TfidfVectorizer(analyzer=lambda text: _grams(tokens(text)), sublinear_tf=True)
    return "tfidf_logistic_regression", make_pipeline(counts, LogisticRegression(C=10.0, max_iter=1000))


def _of_numbers(featurizer: Featurizer) -> tuple[str, Pipeline]:
    def summaries(rows: Inputs) -> np.ndarray:
        read = featurizer.encode_all(rows)
        return np.stack(
            [np.concatenate([x.mean(0), x.std(0), x.min(0), x.max(0), x[-1]]) for x in map(np.asarray, read)]
        )

    steps = (FunctionTransformer(summaries), StandardScaler(), LogisticRegression(max_iter=1000))
    return "summary_logistic_regression", make_pipeline(*steps)


_LINEAR = {"text": _of_texts, "numeric": _of_numbers}
"""The linear model by modality: its name in records, and how it is made."""


def unigram(train: Examples, test: Examples, vocabulary_size: int) -> Metrics:
    """Return the figures of predicting each token, and each row's end, by how often it occurs in the training rows.

    One is added to each count, for the tokens that do not occur.
    """
    counts_V = np.bincount(train.inputs, minlength=vocabulary_size) + 1
    counts_V[END] += len(train)
    targets_N = np.append(test.inputs, np.full(len(test), END))
    loss = -np.log(counts_V[targets_N] / counts_V.sum()).sum()
    hits = (targets_N == counts_V.argmax()).sum()
    return TokenCounts(len(targets_N), int(hits), float(loss)).figures()


def _grams(tokens: list[str]) -> list[str]:
    return tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
