"""Choosing a transfer method by how the methods do on held-out rows after short runs."""

from __future__ import annotations

from dataclasses import replace

from headwater.checkpoint import Checkpoint
from headwater.data.rows import TOO_FEW
from headwater.fitting import Splits, with_epochs
from headwater.registry import lookup
from headwater.stage import Workspace
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.job import make_job, needs_new_input
from headwater.transfer_learning.options import SCRATCH, TransferOptions

_BATCH = 256


def choose_method(
    source: Checkpoint, splits: Splits, options: TransferOptions, workspace: Workspace
) -> tuple[str, str]:
    """Return the method that is best on the held-out rows after short runs, and a sentence that says why.

    A run takes a quarter of the epochs, but enough for all layers to thaw.

    Of equally accurate ones it is that with the lower loss. Where there are too few rows to hold some out it is
    `finetune`.
    """
    held, learned = len(splits.valid), len(splits.train)
    if not held:
        return "finetune", f"{TOO_FEW}, of {learned}, and compare methods by them: --method auto took finetune."
    candidates = [SCRATCH, "features", "init", "finetune", *(["multitask"] if options.source_data else [])]
    if needs_new_input(source, splits, options):
        candidates = [SCRATCH, "init", "finetune"]
    whole = with_epochs(options, learned).epochs
    epochs = min(whole, max(whole // 4, source.config.encoder.layers + 3))  # all layers thaw in a short run too
    figures = {}
    for method in candidates:
        workspace.progress.note(f"auto: {method}, {epochs} epochs")
        given = options.model_copy(update={"method": method, "epochs": epochs})
        figures[method] = _figures(source, splits, given, workspace)
    ranked = sorted(candidates, key=lambda method: (-figures[method]["accuracy"], figures[method]["loss"]))
    found = ", ".join(f"{method} {figures[method]['accuracy']:.3f}" for method in ranked)
    return ranked[0], (
        f"--method auto took {ranked[0]}: accuracy on {held} held-out rows after {epochs} of {whole} epochs on "
        f"{learned} rows: {found}."
    )


def _figures(source: Checkpoint, splits: Splits, options: TransferOptions, workspace: Workspace) -> dict[str, float]:
    job = make_job(source, splits, options, workspace, from_scratch=options.method == SCRATCH)
    lookup("headwater.transfer_methods", METHODS, options.method)(replace(job, part=f"try-{options.method}"))
    held = splits.valid.encode(job.featurizer, splits.labels)
    return job.task.count(job.model.to(workspace.device), held, _BATCH).figures()
