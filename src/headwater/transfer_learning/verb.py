"""The verb `transfer`: a source checkpoint and a target's rows to a target checkpoint."""

from __future__ import annotations

from typing import Any

from headwater.checkpoint import Checkpoint
from headwater.fitting import classifier_facts, language_model_facts, read_splits
from headwater.registry import lookup
from headwater.stage import Outcome, Workspace, run_stage
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.choice import choose_method
from headwater.transfer_learning.control import ZERO_SHOT, announce, compare_with_scratch, evaluate
from headwater.transfer_learning.job import Job, feature_options, make_job
from headwater.transfer_learning.language_model import LANGUAGE_MODELING, check_source, text_splits
from headwater.transfer_learning.multitask import check_tasks
from headwater.transfer_learning.options import AUTO, SCRATCH, TransferOptions


def transfer(source: Checkpoint, options: TransferOptions) -> Checkpoint:
    """Carry a source model over to a target task.

    A language model's figures `before` are those of the source over the tokens of both texts, so that they can be
    compared with the others; those that the source doesn't know start from the mean.

    Returns:
        The target's checkpoint, as written to ``options.out``.

    Raises:
        HeadwaterError: The data, the options or the output folder can't be used.
    """
    run_stage("transfer", options, lambda workspace: _work(source, options, workspace), source)
    return Checkpoint.load(options.out)


def _work(source: Checkpoint, options: TransferOptions, workspace: Workspace) -> Outcome:
    language = options.task == LANGUAGE_MODELING
    if language:
        check_source(source, options)
    check_tasks(source, options)
    features = feature_options(source, options)
    splits = text_splits(options) if language else read_splits(options, options.seed, features=features)
    notes: list[str] = []
    if options.method == AUTO:
        method, notes = choose_method(source, splits, options, workspace)
        options = options.model_copy(update={"method": method})
    job = make_job(source, splits, options, workspace, from_scratch=options.method == SCRATCH)
    before = _before(job)
    if not language:
        announce(job, 0)
    result = lookup("headwater.transfer_methods", METHODS, options.method)(job)
    lineage = source.lineage.model_copy(deep=True)
    checkpoint = Checkpoint(job.config, job.featurizer, {}, lineage).with_model(job.model)
    facts: dict[str, Any] = (
        language_model_facts(job.model, job.task, job.featurizer, splits)
        if language
        else classifier_facts(checkpoint, splits, workspace.device)
    )
    facts["metrics"] = facts.get("metrics", {}) | before
    facts |= {
        "method": options.method,
        "data": [*splits.uses(), *job.source_uses],
        "coverage": job.coverage,
        "notes": notes + job.notes + splits.notes(job.featurizer, fitted=result is not None),
    }
    if result:
        facts |= {"curves": result.curves, "stopped": result.stopped}
        facts["notes"] += result.notes
    if options.control and not language:
        compared = compare_with_scratch(job, facts.get("baselines", {}) | before)
        facts |= compared | {"notes": facts["notes"] + compared["notes"]}
    return Outcome(checkpoint, facts, (source,))


def _before(job: Job) -> dict[str, Any]:
    """Return the figures before any training, where all of the model is the source's."""
    whole = not job.new_input and any(name.startswith("head.") for name in job.carried)
    if not len(job.splits.test) or not whole:
        return {}
    if job.options.task == LANGUAGE_MODELING:
        model = job.model.to(job.workspace.device)
        found = language_model_facts(model, job.task, job.featurizer, job.splits)["metrics"]
        return {"before": found[job.splits.test_name]}
    return {ZERO_SHOT: evaluate(job).figures()}
