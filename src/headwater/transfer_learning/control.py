"""The guard against negative transfer: the same training from scratch beside a transfer.

Shapes: S seeds, N test rows, K classes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headwater.evaluation import Evaluation
from headwater.records import Metrics
from headwater.registry import lookup
from headwater.statistics import paired_bootstrap, verdict
from headwater.tasks.classification import class_probabilities
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.job import Job, make_job
from headwater.transfer_learning.options import SCRATCH


def compare_with_scratch(job: Job) -> tuple[Metrics, str]:
    """Train a finished job's twin from scratch: same rows, options and seed, nothing carried over.

    With several seeds both are trained once for each, on the same rows.

    Returns:
        The twin's figures on the test rows, means over the seeds, and a sentence with the paired interval and verdict.
    """
    options, test = job.options, job.splits.test
    ours, theirs = [evaluate(job)], []
    for seed in range(options.seed, options.seed + options.control_seeds):
        if seed != options.seed:
            ours.append(evaluate(_trained(job, options.method, seed)))
        theirs.append(evaluate(_trained(job, SCRATCH, seed)))
    interval = paired_bootstrap(_correct(ours), _correct(theirs))
    own, twin = _means(ours), _means(theirs)
    seeds = f" over {options.control_seeds} seeds" if options.control_seeds > 1 else ""
    rows = "test rows" if job.splits.test_name == "test" else "held-out rows"
    note = (
        f"Accuracy {own['accuracy']:.3f}, its twin from scratch {twin['accuracy']:.3f}{seeds}: {interval.mean:+.3f}, "
        f"95% interval {interval.low:+.3f} to {interval.high:+.3f} (paired bootstrap of {len(test)} {rows}): "
        f"{verdict(interval)}."
    )
    return twin, note


def evaluate(job: Job) -> Evaluation:
    """Measure a trained job on its test rows."""
    labels = job.splits.labels
    model = job.model.to(job.workspace.device)
    probabilities_NK = class_probabilities(model, job.splits.test.encode(job.featurizer, labels))
    return Evaluation.of(job.splits.test, labels, probabilities_NK)


def _trained(job: Job, method: str, seed: int) -> Job:
    """Return another job on the same rows when it is done; its interrupted state has a name of its own."""
    job.workspace.progress.note(f"control: {method}, seed {seed}")
    options = job.options.model_copy(update={"method": method, "seed": seed})
    other = make_job(job.source, job.splits, options, job.workspace, from_scratch=method == SCRATCH)
    other = replace(other, part=f"{'twin' if method == SCRATCH else 'again'}-{seed}")
    lookup("headwater.transfer_methods", METHODS, method)(other)
    return other


def _correct(evaluations: list[Evaluation]) -> np.ndarray:
    return np.array([e.probabilities_NK.argmax(1) == e.targets_N for e in evaluations])


def _means(evaluations: list[Evaluation]) -> Metrics:
    figures = [evaluation.figures() for evaluation in evaluations]
    return {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
