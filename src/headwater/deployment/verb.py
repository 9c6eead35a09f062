"""Exporting a checkpoint: build, verify, measure, and only then write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Annotated, Any

import torch
from pydantic import Field

from headwater.checkpoint import SCALE_SUFFIX, Checkpoint
from headwater.comparison import Comparison, MeasureOptions, measuring_rows
from headwater.config import RunOptions
from headwater.data.rows import Rows
from headwater.deployment import EXPORT_TARGETS, export_target
from headwater.deployment.artifact import ARTIFACT_FILE, Artifact, ArtifactRecord
from headwater.deployment.base import Settings, Target
from headwater.deployment.latency import measure
from headwater.deployment.verify import rounding, verify
from headwater.errors import ExportError
from headwater.explain.occlusion import examples
from headwater.files import write_atomic
from headwater.inference import Predictor, Runner
from headwater.records import Latency, Verification
from headwater.registry import name_in
from headwater.stage import Outcome, Workspace, run_stage
from headwater.weights import Weights


class ExportOptions(MeasureOptions, RunOptions):
    """Options of `export`."""

    target: Annotated[str, name_in("headwater.export_targets", EXPORT_TARGETS)] = "onnx"
    """`onnx`: an ONNX file that keeps to what all runtimes compute alike; run here by onnxruntime."""
    client: str | None = None
    """Export this client's own model, of a checkpoint that holds the clients' models."""
    tolerance: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """Largest difference of a class probability between the artifact and the checkpoint that passes."""


@dataclass(frozen=True)
class _Variant:
    """One way to run the artifact, which has passed.

    Attributes:
        settings: What the runtime is told.
        run: Runs it.
        verification: How it compares with the checkpoint.
        comparison: The same on real rows, where some were given.
    """

    settings: Settings
    run: Runner
    verification: Verification
    comparison: Comparison | None


def export(checkpoint: Checkpoint, options: ExportOptions) -> Artifact:
    """Write a model for a runtime without torch, but only if it computes what the checkpoint computes.

    Returns:
        The artifact, as written to ``options.out``.

    Raises:
        ExportError: The target can't express the model, or the artifact differs by more than the tolerance.
        HeadwaterError: The client, the data or the output folder can't be used.
    """
    run_stage("export", options, lambda workspace: _work(checkpoint, options, workspace), checkpoint)
    return Artifact.load(options.out)


def _work(checkpoint: Checkpoint, options: ExportOptions, workspace: Workspace) -> Outcome:
    target = export_target(options.target)
    model = target.build(checkpoint.config, stored_weights(checkpoint, options.client))
    reference = checkpoint.predictor(options.client)
    variants = _passing(target, model, checkpoint, reference, options)
    runners = {"torch": reference.run} | {name: variant.run for name, variant in variants.items()}
    latency = measure(runners, checkpoint.featurizer, threads=torch.get_num_threads())
    best = variants[_fastest(latency, variants)]
    record = ArtifactRecord(
        target=options.target,
        runtime=target.runtime,
        runtime_version=version(target.runtime),
        settings=dict(best.settings),
        labels=checkpoint.labels,
        client=options.client,
        checkpoint=checkpoint.identity,
        verification=best.verification,
    )
    files = {target.file: model} | {name: text.encode() for name, text in checkpoint.preparation_files().items()}
    for name, content in files.items():
        write_atomic(workspace.folder / name, content)
    write_atomic(workspace.folder / ARTIFACT_FILE, record.model_dump_json(indent=1) + "\n")
    facts: dict[str, Any] = {
        "method": options.target,
        "device": "cpu",
        "sizes": {name: len(content) for name, content in files.items()},
        "latency": latency,
        "verification": best.verification,
    }
    if best.comparison:
        rows = best.comparison.rows
        facts |= best.comparison.after.facts("test") | {"data": [rows.use("test")]}
        facts["examples"] = examples(replace(reference, run=best.run), rows)
    if checkpoint.personal and options.client is None:
        whose = f"the own weights of {len(checkpoint.personal)} clients stay behind"
        facts["notes"] = [f"This is the shared model; {whose}. --client NAME exports a client's own."]
    return Outcome(None, facts, (checkpoint,), artifact_of=checkpoint)


def stored_weights(checkpoint: Checkpoint, client: str | None) -> Weights:
    """Return the weights as they are stored, a client's own in place of the shared.

    Raises:
        CheckpointError: The checkpoint knows no such client.
    """
    tensors = dict(checkpoint.tensors)
    if client is not None:
        everything = checkpoint.weights(client)
        for name in checkpoint.personal[client]:
            tensors.pop(name + SCALE_SUFFIX, None)
            tensors[name] = everything[name]
    return tensors


def _passing(
    target: Target, model: bytes, checkpoint: Checkpoint, reference: Predictor, options: ExportOptions
) -> dict[str, _Variant]:
    """Return the ways to run the artifact that pass; the plain one must."""
    config, rows = checkpoint.config, measuring_rows(options, reference.labels, checkpoint.featurizer.options)
    passed: dict[str, _Variant] = {}
    for name, settings in target.variants(config).items():
        run = target.open(model, settings, torch.get_num_threads())
        comparison = _compare(run, reference, rows) if rows is not None else None
        verification = verify(
            run,
            reference.run,
            checkpoint.featurizer,
            tolerance=options.tolerance,
            seed=options.seed,
            comparison=comparison,
        )
        if verification.passed:
            passed[name] = _Variant(settings, run, verification, comparison)
        elif not passed:
            raise _refusal(target, checkpoint, verification, options)
    return passed


def _refusal(target: Target, checkpoint: Checkpoint, verification: Verification, options: ExportOptions) -> ExportError:
    own = rounding(checkpoint.model(options.client), checkpoint.featurizer, options.seed)
    advice = (
        f"this model multiplies rounding errors: in torch alone, float32 and float64 differ by {own:.2g}; "
        "allow that much with --tolerance, or train again with a higher --weight-decay"
        if own > options.tolerance / 2
        else f"this is no rounding: try another version of {target.runtime}"
    )
    return ExportError(
        f"the {options.target} model differs from the checkpoint by {verification.max_difference:.2g} in a "
        f"class probability where {options.tolerance:g} is allowed, so nothing was written; {advice}"
    )


def _compare(run: Runner, reference: Predictor, rows: Rows) -> Comparison:
    artifact_NK = replace(reference, run=run).probabilities(rows.inputs)
    return Comparison.of(rows, reference.labels, reference.probabilities(rows.inputs), artifact_NK)


def _fastest(latency: Sequence[Latency], names: Iterable[str]) -> str:
    return min(names, key=lambda name: sum(row.median_us for row in latency if row.runtime == name))
