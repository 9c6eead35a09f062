"""Choosing a transfer method by how the methods do on held-out rows after short runs.

Shapes: N held-out rows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from headwater.checkpoint import Checkpoint
from headwater.data.rows import LEAST_HELD_OUT, Rows
from headwater.fitting import Splits, with_epochs
from headwater.registry import lookup
from headwater.stage import Workspace
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.control import evaluate
from headwater.transfer_learning.job import make_job, needs_new_input
from headwater.transfer_learning.options import SCRATCH, TransferOptions

_SAFEST_FIRST = ("finetune", "init", "lora", "features", "multitask", SCRATCH)
_ENOUGH = 200
"""Fewer held-out rows are too few to choose by: then each row to learn from is held out in turn."""
_FOLDS = 3


def choose_method(
    source: Checkpoint, splits: Splits, options: TransferOptions, workspace: Workspace
) -> tuple[str, list[str]]:
    """Return the method to take, and sentences that say why.

    Each method has short runs, a quarter of the epochs but enough for all layers to thaw, and is measured on rows that
    it hasn't seen: those held out, or, where they are few, a third of the rows to learn from in each of three runs.
    The method taken is the safest one whose lag behind the best is at most its own standard error (the rule of one
    standard error, Breiman et al. 1984, section 3.4.3, here of the paired difference): a smaller lag may be chance.
    `finetune` counts as the safest, training from scratch as the last resort. Where there are too few rows even for
    that, it is `finetune`.
    """
    learned, of_label = len(splits.train), _separate(splits.train)
    if learned < LEAST_HELD_OUT or min(of_label.values()) < _FOLDS:
        few = f"{learned} rows, or fewer than {_FOLDS} of a label, are too few to compare methods by"
        return _SAFEST_FIRST[0], [f"--method auto took {_SAFEST_FIRST[0]} untried: {few}."]
    new_input = needs_new_input(source, splits, options)
    methods = [method for method in _SAFEST_FIRST if _is_sensible(method, source, options, new_input=new_input)]
    whole = with_epochs(options, learned).epochs
    epochs = min(whole, max(whole // 4, source.config.encoder.layers + 3))  # all layers thaw in a short run too
    given = options.model_copy(update={"epochs": epochs})
    hits: dict[str, list[np.ndarray]] = {method: [] for method in methods}
    folds = _folds(splits, options.seed)
    for number, fold in enumerate(folds):
        for method in methods:
            workspace.progress.note(f"auto: {method}, {epochs} epochs, run {number + 1} of {len(folds)}")
            hits[method].append(_hits(source, fold, given.model_copy(update={"method": method}), workspace, number))
    taken, why = _within_one_error({method: np.concatenate(found) for method, found in hits.items()})
    held = sum(len(fold.test) for fold in folds)
    turns = f", {_FOLDS} runs each" if len(folds) > 1 else ""
    tried = f"on {held} held-out rows{turns}, after {epochs} of {whole} epochs on {len(folds[0].train)} rows"
    notes = [f"--method auto took {taken}: accuracy {tried}: {why}."]
    if len(folds) == 1 and splits.test_name == "valid":
        notes.append("The held-out rows have chosen the method too: their figures flatter it; --test FILE doesn't.")
    return taken, notes


def _separate(rows: Rows) -> Counter[str]:
    """Return how many rows each label has; windows of one recording count once, as they stay together."""
    return Counter(label for label, _ in set(zip(rows.labels, rows.recordings or range(len(rows)), strict=True)))


def _is_sensible(method: str, source: Checkpoint, options: TransferOptions, *, new_input: bool) -> bool:
    """Return whether to try a method: what it needs is there, its adapters would be thinner than the matrices."""
    if new_input and method in ("features", "multitask"):
        return False
    if method == "lora":
        encoder = source.config.encoder
        return 2 * options.rank <= min(encoder.hidden_size, encoder.embedding_size)
    return method != "multitask" or bool(options.source_data)


def _folds(splits: Splits, seed: int) -> list[Splits]:
    """Return what to learn from and what to measure on in each short run; nothing is left to choose an epoch by."""
    train, none = splits.train, splits.train.take([])
    if len(splits.valid) >= _ENOUGH:
        return [replace(splits, valid=none, test=splits.valid)]
    folds = StratifiedGroupKFold if train.recordings else StratifiedKFold
    dealt = folds(_FOLDS, shuffle=True, random_state=seed % 2**32).split(
        train.labels, train.labels, train.recordings or None
    )
    return [replace(splits, train=train.take(learn), valid=none, test=train.take(held)) for learn, held in dealt]


def _hits(source: Checkpoint, fold: Splits, options: TransferOptions, workspace: Workspace, number: int) -> np.ndarray:
    """Return for each held-out row whether a short run gets it right: (N,)."""
    job = make_job(source, fold, options, workspace, from_scratch=options.method == SCRATCH)
    job = replace(job, part=f"try-{options.method}-{number}")
    lookup("headwater.transfer_methods", METHODS, options.method)(job)
    return evaluate(job).hits_N


def _within_one_error(hits_by_method: dict[str, np.ndarray]) -> tuple[str, str]:
    """Return the first method that isn't clearly behind the best one, and the figures that say so."""
    accuracy = {method: float(hits_N.mean()) for method, hits_N in hits_by_method.items()}
    best = max(accuracy, key=accuracy.__getitem__)
    errors = {
        method: float((hits_by_method[best].astype(float) - hits_N).std(ddof=1) / np.sqrt(len(hits_N)))
        for method, hits_N in hits_by_method.items()
    }
    # A lead of a single row is as large as its error; whether rounding makes it larger must not matter.
    taken = next(method for method in hits_by_method if accuracy[best] - accuracy[method] <= errors[method] + 1e-9)
    ranked = sorted(accuracy, key=lambda method: -accuracy[method])
    figures = ", ".join(f"{method} {accuracy[method]:.3f}" for method in ranked)
    if taken == best:
        return taken, figures
    return taken, f"{figures}; {taken} is safer than {best} and within one standard error ({errors[taken]:.3f}) of it"
