"""What pre-training and transfer share: read rows, fit a model on them, report on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headwater.baselines import baselines, unigram
from headwater.checkpoint import Checkpoint
from headwater.config import DataOptions, ValueColumns
from headwater.data.examples import Examples
from headwater.data.rows import TOO_FEW, Rows, choose, hold_out, label_set, read_rows, row_notes
from headwater.errors import DataError
from headwater.evaluation import Evaluation
from headwater.features.featurizer import FeatureOptions, Featurizer
from headwater.model import SequenceModel
from headwater.records import Metrics
from headwater.stage import Workspace
from headwater.tasks import Task
from headwater.tasks.classification import class_probabilities
from headwater.tasks.language_modeling import LanguageModeling, StreamObjective
from headwater.trainer import FitResult, Objective, ParameterGroup, TaskObjective, TrainOptions, fit

_EVALUATION_BATCH = 256
_LANGUAGE_BATCH = 64
_STEPS, _LEAST_EPOCHS, _MOST_EPOCHS = 400, 6, 30


@dataclass(frozen=True)
class Splits:
    """The rows of a stage.

    Attributes:
        train: To learn from.
        valid: To choose the best epoch; empty where there are too few rows.
        test: To report on: the rows of `--test`, else the held-out ones.
        test_name: ``"test"`` or ``"valid"``.
        labels: Of the training rows, in order; empty for tasks without labels.
        file_labels: Of all rows of the training file, one a row, before any were chosen.
    """

    train: Rows
    valid: Rows
    test: Rows
    test_name: str
    labels: tuple[str, ...]
    file_labels: Sequence[str]

    def uses(self) -> list[Any]:
        """Return the records of the files read."""
        parts = [self.train.use("train")]
        if len(self.valid):
            parts.append(self.valid.use("valid"))
        return [*parts, self.test.use("test")] if self.test_name == "test" else parts

    def notes(self, featurizer: Featurizer, *, fitted: bool) -> list[str]:
        """Return what a reader of the figures should know; `fitted`: in epochs, of which the rows held out choose."""
        notes = row_notes(featurizer, self.train, self.test)
        if fitted and not len(self.valid):
            notes.append(f"{TOO_FEW}: --valid and --patience were ignored, the model is that of the last epoch.")
        if not len(self.test):
            notes.append("Without rows held out and without --test, the model was not measured.")
        return notes


def read_splits(
    options: DataOptions, seed: int, *, labelled: bool = True, features: FeatureOptions | None = None
) -> Splits:
    """Read, choose and split the rows that the options name; `features`: how they will be prepared, if it is known."""
    label = options.label if labelled else None
    values = options.only(ValueColumns)

    def read(data: str) -> Rows:
        return read_rows(data, text=options.text, label=label, values=values, features=features)

    rows = read(options.data)
    labels = label_set(rows) if labelled else ()
    file_labels = rows.labels
    rows = choose(rows, options.rows, seed)
    train, valid = hold_out(rows, options.valid, seed)
    if unseen := sorted(set(labels) - set(train.labels)):
        raise DataError(
            f"{options.data}: of {len(train)} rows to learn from none has the label {unseen[0]!r}: "
            "raise --rows, lower --valid, or give more rows of that label"
        )
    if options.test:
        test = read(options.test)
        test.targets(labels)  # an unknown label is said now, not after the training
        return Splits(train, valid, test, "test", labels, file_labels)
    return Splits(train, valid, valid, "valid", labels, file_labels)


def with_epochs(options: TrainOptions, rows: int) -> TrainOptions:
    """Return the options with the number of epochs decided."""
    if options.epochs:
        return options
    steps = max(1, -(-rows // options.step_size))
    return options.model_copy(update={"epochs": min(max(-(-_STEPS // steps), _LEAST_EPOCHS), _MOST_EPOCHS)})


def fit_task(
    model: SequenceModel,
    task: Task,
    featurizer: Featurizer,
    splits: Splits,
    options: TrainOptions,
    workspace: Workspace,
    *,
    seed: int,
    part: str = "",
    groups: Sequence[ParameterGroup] = (ParameterGroup(("",)),),
    others: Sequence[Objective] = (),
    trained: torch.nn.Module | None = None,
    together: Callable[[Objective], Sequence[Objective]] = lambda own: [own],
) -> FitResult:
    """Fit a model to its task's rows (and other objectives), choosing the epoch by the held-out rows.

    Several fits of one stage need a `part` each, the name of the state that an interrupted one continues from. What is
    learned of the task's own rows is put `together` with what goes beside it; by default it stays as it is.
    """
    (trained or model).to(workspace.device)
    examples = splits.train.encode(featurizer, splits.labels)
    main = task_objective(model, task, examples, options, seed, workspace.device)
    options = with_epochs(options, main.steps_per_epoch * options.step_size)
    held = splits.valid.encode(featurizer, splits.labels) if len(splits.valid) else None

    def evaluate() -> dict[str, float]:
        if held is None:  # no rows to choose by: the last epoch wins
            return {}
        return task.count(model, held, _EVALUATION_BATCH).figures()

    return fit(
        model,
        [*together(main), *others],
        evaluate,
        options if held is not None else options.model_copy(update={"patience": 0}),
        best_by=task.best if held is not None else None,
        seed=seed,
        groups=groups,
        trained=trained,
        state_file=workspace.state_file(part),
        progress=workspace.progress,
    )


def task_objective(
    model: SequenceModel, task: Task, examples: Examples, options: TrainOptions, seed: int, device: torch.device
) -> Objective:
    """Return what is learned from the task's rows: batches of them, or windows of the streams that they make."""
    if isinstance(task, LanguageModeling) and task.bptt:
        return StreamObjective(model, task, examples, options.batch_size, seed, device, options.accumulate)
    return TaskObjective(model, task, examples, options.batch_size, seed, device, options.accumulate)


def classifier_facts(checkpoint: Checkpoint, splits: Splits, device: torch.device) -> dict[str, Any]:
    """Return the record fields of a classifier: figures, confusion, baselines on the same rows."""
    if not len(splits.test):
        return {}
    examples = splits.test.encode(checkpoint.featurizer, checkpoint.labels)
    model = checkpoint.model().to(device)
    evaluation = Evaluation.of(splits.test, checkpoint.labels, class_probabilities(model, examples))
    simple = baselines(
        splits.train, splits.test, checkpoint.labels, checkpoint.featurizer, file_labels=splits.file_labels
    )
    return evaluation.facts(splits.test_name) | {"baselines": simple}


def language_model_facts(
    model: SequenceModel, task: Task, featurizer: Featurizer, splits: Splits
) -> dict[str, dict[str, Metrics]]:
    """Return the record fields of a language model: figures, and those of the unigrams on the same tokens."""
    if not len(splits.test):
        return {}
    train, test = splits.train.encode(featurizer, ()), splits.test.encode(featurizer, ())
    return {
        "metrics": {splits.test_name: task.count(model, test, _LANGUAGE_BATCH).figures()},
        "baselines": {"unigram": unigram(train, test, featurizer.sizes["vocabulary_size"])},
    }
