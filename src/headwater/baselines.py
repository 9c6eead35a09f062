"""What a model must beat to be worth anything.

For a classifier the most frequent label, and a linear model on word counts; for a language model how often each token
occurs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from headwater.data.examples import Examples
from headwater.data.rows import Rows
from headwater.features.text import END, TextFeaturizer
from headwater.metrics import ClassificationCounts, TokenCounts
from headwater.records import Metrics


def baselines(
    train: Rows,
    test: Rows,
    labels: Sequence[str],
    featurizer: TextFeaturizer,
    *,
    file_labels: Sequence[str] = (),
) -> dict[str, Metrics]:
    """Return the figures of both baselines on the test rows, trained on the same rows as the model.

    The majority is that of `file_labels`, all rows of the training file, where they are given: rows that are drawn
    evenly over the labels have none.

    The linear model is logistic regression on TF-IDF of the model's own tokens and their pairs, with the settings
    that scikit-learn's users take (sublinear counts, C = 10).
    """
    numbers = {label: number for number, label in enumerate(labels)}
    train_N = np.array([numbers[label] for label in train.labels])
    test_N = np.array([numbers[label] for label in test.labels])
    known_N = np.array([numbers[label] for label in file_labels or train.labels])
    share_K = np.bincount(known_N, minlength=len(labels)) / len(known_N)
    out = {"majority": ClassificationCounts.of(np.tile(share_K, (len(test_N), 1)), test_N).figures()}
    counts = TfidfVectorizer(analyzer=lambda text: _grams(featurizer.tokens(text)), sublinear_tf=True)
    linear = LogisticRegression(C=10.0, max_iter=1000)
    linear.fit(counts.fit_transform(train.texts), train_N)
    probabilities_NK = np.zeros((len(test_N), len(labels)))
    probabilities_NK[:, linear.classes_] = linear.predict_proba(counts.transform(test.texts))
    out["tfidf_logistic_regression"] = ClassificationCounts.of(probabilities_NK, test_N).figures()
    return out


def unigram(train: Examples, test: Examples, vocabulary_size: int) -> Metrics:
    """Return the figures of predicting each token, and each row's end, by how often it occurs in the training rows.

    One is added to each count, for the tokens that do not occur.
    """
    counts_V = np.bincount(train.tokens, minlength=vocabulary_size) + 1
    counts_V[END] += len(train)
    targets_N = np.append(test.tokens, np.full(len(test), END))
    loss = -np.log(counts_V[targets_N] / counts_V.sum()).sum()
    hits = (targets_N == counts_V.argmax()).sum()
    return TokenCounts(len(targets_N), int(hits), float(loss)).figures()


def _grams(tokens: list[str]) -> list[str]:
    return tokens + [f"{a} {b}" for a, b in itertools.pairwise(tokens)]
