"""The verb `transfer`: a source checkpoint and a target's rows to a target checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from headwater.checkpoint import Checkpoint
from headwater.fitting import classifier_facts, read_splits
from headwater.registry import lookup
from headwater.stage import Outcome, Workspace, run_stage
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.choice import choose_method
from headwater.transfer_learning.control import compare_with_scratch, evaluate
from headwater.transfer_learning.job import Job, feature_options, make_job
from headwater.transfer_learning.options import AUTO, SCRATCH, TransferOptions


def transfer(source: Checkpoint, options: TransferOptions) -> Checkpoint:
    """Carry a source model over to a target task.

    Returns:
        The target's checkpoint, as written to ``options.out``.

    Raises:
        HeadwaterError: The data, the options or the output folder can't be used.
    """
    run_stage("transfer", options, lambda workspace: _work(source, options, workspace), source)
    return Checkpoint.load(options.out)


def _work(source: Checkpoint, options: TransferOptions, workspace: Workspace) -> Outcome:
    splits = read_splits(options, options.seed, features=feature_options(source, options))
    notes = []
    if options.method == AUTO:
        method, why = choose_method(source, splits, options, workspace)
        options = options.model_copy(update={"method": method})
        notes.append(why)
        if splits.test_name == "valid":
            notes.append("The held-out rows have chosen the method too: their figures flatter it; --test FILE doesn't.")
    job = make_job(source, splits, options, workspace, from_scratch=options.method == SCRATCH)
    if job.new_input and options.method != SCRATCH:
        notes.append(_crossing(job))
    before = _zero_shot(job)
    result = lookup("headwater.transfer_methods", METHODS, options.method)(job)
    lineage = source.lineage.model_copy(deep=True)
    checkpoint = Checkpoint(job.config, job.featurizer, {}, lineage).with_model(job.model)
    facts: dict[str, Any] = classifier_facts(checkpoint, splits, workspace.device)
    facts["metrics"] = facts.get("metrics", {}) | before
    facts |= {
        "method": options.method,
        "data": [*splits.uses(), *job.source_uses],
        "coverage": job.coverage,
        "notes": notes + splits.notes(job.featurizer, fitted=result is not None),
    }
    # What a core is worth to rows that its source has never read, nobody knows beforehand.
    if (options.control or job.new_input) and options.method != SCRATCH and len(splits.test):
        seeds = options.control_seeds if options.control else 1
        twin, note = compare_with_scratch(replace(job, options=options.model_copy(update={"control_seeds": seeds})))
        facts["controls"] = {SCRATCH: twin}
        facts["notes"].append(note)
    if result:
        facts |= {"curves": result.curves, "stopped": result.stopped}
        facts["notes"] += result.notes
    return Outcome(checkpoint, facts, (source,))


def _crossing(job: Job) -> str:
    """Return what was kept where the source has read other rows than the target's."""
    was, now = (f"numbers of {c.channels} channels" if c.channels else "text" for c in (job.source.config, job.config))
    kept = sum(value.numel() for name, value in job.carried.items() if name.startswith("encoder."))
    return (
        f"The source has read {was}, the target's rows are {now}: {kept:,} recurrent weights were kept, the input side "
        "is new."
    )


def _zero_shot(job: Job) -> dict[str, Any]:
    """Return the source's figures on the target before any training, where all of it was carried over."""
    whole = not job.new_input and any(name.startswith("head.") for name in job.carried)
    if not len(job.splits.test) or not whole:
        return {}
    return {"zero_shot": evaluate(job).figures()}
