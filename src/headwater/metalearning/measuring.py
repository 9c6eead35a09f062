"""How well learners adapt to tasks that none of them has seen, on the same episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from headwater.baselines import baselines
from headwater.evaluation import Evaluation
from headwater.metalearning.adaptation import Learner
from headwater.metalearning.episodes import Episodes
from headwater.metalearning.methods import Method
from headwater.progress import Progress
from headwater.records import Metrics
from headwater.statistics import paired_bootstrap, verdict
from headwater.tasks.classification import class_probabilities
from headwater.weights import Weights, load_weights

META_LEARNED, PLAIN_START, NOT_ADAPTED = "meta_learned", "plain_start", "not_adapted"


def measure(
    method: Method,
    learner: Learner,
    learned: Weights,
    plain: Weights,
    episodes: Episodes,
    count: int,
    progress: Progress,
) -> dict[str, list[Metrics]]:
    """Return the figures of each episode's queries, after adapting to its support rows.

    Args:
        method: How to adapt.
        learner: Its model is left with the learned weights.
        learned: What meta-learning has made of the plain start.
        plain: What it began with.
        episodes: Of tasks that were never learned from.
        count: How many.
        progress: Where to show how it goes.

    Returns:
        One entry an episode, adapted from the learned and from the plain weights, and of the baselines trained on the
        same support rows; where a head was learned, of the learned weights as they are too.
    """
    found: dict[str, list[Metrics]] = {}
    for number in range(count):
        episode = episodes[number]
        query = episode.query()
        figures: dict[str, Metrics] = {}
        for name, weights in ((PLAIN_START, plain), (META_LEARNED, learned)):
            load_weights(learner.model, weights)
            labels, probabilities_QK = method.probabilities(learner, episode)
            figures[name] = Evaluation.of(query, labels, probabilities_QK).figures()
        if method.head and episodes.labels:
            probabilities_QK = class_probabilities(learner.model, query.encode(learner.featurizer, episode.labels))
            figures[NOT_ADAPTED] = Evaluation.of(query, episode.labels, probabilities_QK).figures()
        figures |= baselines(episode.support(), query, episode.labels, learner.featurizer)
        for name, values in figures.items():
            found.setdefault(name, []).append(values)
        progress.advance(number + 1, count)
    return found


def mean_figures(figures: Sequence[Metrics]) -> Metrics:
    """Return the means over the episodes, and the number of their queries."""
    means = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
    return means | {"n": float(sum(one["n"] for one in figures))}


def compare(found: Mapping[str, Sequence[Metrics]], episodes: Episodes) -> str:
    """Return a sentence with both starts' accuracy, the paired interval over the episodes, and the verdict."""
    ours, plain = ([one["accuracy"] for one in found[name]] for name in (META_LEARNED, PLAIN_START))
    interval = paired_bootstrap(ours, plain)
    tasks = len(episodes.classes)
    of = f"{tasks} held-out task{'s' * (tasks > 1)}" if episodes.labels else "held-out labels"
    return (
        f"After adapting to {episodes.options.shots} rows of each class: accuracy {np.mean(ours):.3f}, from the plain "
        f"start {np.mean(plain):.3f}: {interval.mean:+.3f}, 95% interval {interval.low:+.3f} to {interval.high:+.3f} "
        f"(paired bootstrap of {len(ours)} episodes of {of}; other tasks may differ by more): {verdict(interval)}."
    )
