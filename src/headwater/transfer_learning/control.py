"""The guard against negative transfer: the same training from scratch beside a transfer.

Shapes: S seeds, N test rows, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from headwater.evaluation import Evaluation
from headwater.records import Gain, Metrics
from headwater.registry import lookup
from headwater.statistics import paired_bootstrap, verdict
from headwater.tasks.classification import class_probabilities
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.job import Job, make_job
from headwater.transfer_learning.options import SCRATCH

ZERO_SHOT = "zero_shot"
BESIDE = {
    ZERO_SHOT: "the source as it is",
    "tfidf_logistic_regression": "the linear baseline",
    "summary_logistic_regression": "the linear baseline",
}
"""What else a transfer is compared with, and how it is called."""


def announce(job: Job, number: int) -> None:
    """Show which training of a transfer begins, where its control makes them several."""
    trainings = _trainings(job)
    if len(trainings) > 1:
        method, seed = trainings[number]
        job.workspace.progress.note(f"training {number + 1} of {len(trainings)}: {method}, seed {seed}")


def compare_with_scratch(job: Job, beside: Mapping[str, Metrics]) -> dict[str, Any]:
    """Train a finished job's twin from scratch: same rows, options and seed, nothing carried over.

    With several seeds both are trained once for each, on the same rows.

    Args:
        job: The finished transfer.
        beside: Figures on the same rows that are to stand in the sentence too: of `BESIDE`, as far as there are some.

    Returns:
        Record fields: the figures of the twin of the job's own seed as `controls`; the `gain` over all seeds; and as
        `notes` a sentence that says it, or why there is no twin.
    """
    test = job.splits.test
    if not len(test):
        return {"notes": ["No twin from scratch was trained: there are no rows to compare on; add --test FILE."]}
    if job.options.method == SCRATCH:
        over = _over(evaluate(job).figures(), beside)
        return {"notes": [f"A training from scratch is the control itself, so no twin stands beside it{over}."]}
    ours: list[Evaluation] = [evaluate(job)]
    theirs: list[Evaluation] = []
    for number, (method, seed) in enumerate(_trainings(job)[1:], 1):
        announce(job, number)
        (theirs if method == SCRATCH else ours).append(evaluate(_trained(job, method, seed)))
    interval = paired_bootstrap(_correct(ours), _correct(theirs))
    gain = Gain(**vars(interval), seeds=len(ours), verdict=verdict(interval))
    own, twin = _means(ours), _means(theirs)
    means = f", means of {len(ours)} seeds" if len(ours) > 1 else ""
    rows = f"{len(test)} {'test' if job.splits.test_name == 'test' else 'held-out'} rows"
    note = (
        f"Over training from scratch {gain.mean:+.3f} in accuracy ({own['accuracy']:.3f} against "
        f"{twin['accuracy']:.3f}{means}; 95% interval {gain.low:+.3f} to {gain.high:+.3f}, paired bootstrap of {rows}"
        f"{' and seeds' if means else ''}): {gain.verdict}{_over(own, beside)}."
    )
    return {"controls": {SCRATCH: theirs[0].figures()}, "gain": gain, "notes": [note]}


def evaluate(job: Job) -> Evaluation:
    """Measure a trained job on its test rows."""
    labels = job.splits.labels
    model = job.model.to(job.workspace.device)
    probabilities_NK = class_probabilities(model, job.splits.test.encode(job.featurizer, labels))
    return Evaluation.of(job.splits.test, labels, probabilities_NK)


def _trainings(job: Job) -> list[tuple[str, int]]:
    """Return the method and seed of each training, the transfer's own first."""
    options = job.options
    if not options.control or options.method == SCRATCH or not len(job.splits.test):
        return [(options.method, options.seed)]
    seeds = range(options.seed, options.seed + options.control_seeds)
    return [(method, seed) for seed in seeds for method in (options.method, SCRATCH)]


def _trained(job: Job, method: str, seed: int) -> Job:
    """Return another job on the same rows when it is done; its interrupted state has a name of its own."""
    options = job.options.model_copy(update={"method": method, "seed": seed})
    other = make_job(job.source, job.splits, options, job.workspace, from_scratch=method == SCRATCH)
    other = replace(other, part=f"{'twin' if method == SCRATCH else 'again'}-{seed}")
    lookup("headwater.transfer_methods", METHODS, method)(other)
    return other


def _over(own: Metrics, beside: Mapping[str, Metrics]) -> str:
    """Return what is to be said of the figures beside a model's own, with what it has over each."""
    found = [(what, beside[name]["accuracy"]) for name, what in BESIDE.items() if name in beside]
    return "".join(f"; over {what} ({figure:.3f}) {own['accuracy'] - figure:+.3f}" for what, figure in found)


def _correct(evaluations: list[Evaluation]) -> np.ndarray:
    return np.stack([evaluation.hits_N for evaluation in evaluations])


def _means(evaluations: list[Evaluation]) -> Metrics:
    figures = [evaluation.figures() for evaluation in evaluations]
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
