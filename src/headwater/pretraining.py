"""Pre-training: a model from a rich source task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import torch

from headwater.baselines import unigram
from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.config import DataOptions, RunOptions
from headwater.data.rows import LEAST_HELD_OUT
from headwater.errors import ConfigError, DataError
from headwater.features.featurizer import FeatureOptions, Featurizer, fit_featurizer, text_featurizer
from headwater.features.numeric import NumericOptions, WindowOptions
from headwater.features.text import TextFeaturizer, TextOptions
from headwater.features.vectors import read_vectors
from headwater.fitting import classifier_facts, fit_task, read_splits
from headwater.model import DropoutOptions, EncoderOptions, Pooling, SequenceModel
from headwater.registry import name_in
from headwater.stage import Outcome, Workspace, run_stage
from headwater.tasks import TASKS, task_class
from headwater.tasks.language_modeling import LanguageModelingOptions
from headwater.trainer import TrainOptions

TRAINABLE = {name: place for name, place in TASKS.items() if name != "representation"}


class PretrainOptions(
    LanguageModelingOptions,
    TrainOptions,
    DropoutOptions,
    EncoderOptions,
    TextOptions,
    WindowOptions,
    DataOptions,
    RunOptions,
):
    """Options of `pretrain`."""

    task: Annotated[str, name_in("headwater.tasks", TRAINABLE)] = "classification"
    """What to learn from the source: `classification` or `language_modeling`, which needs no labels and reads in one
    direction."""
    pooling: Pooling = "concat"
    """How a classifier sums up a row's states: last, max, mean, or all three."""
    vectors: Path | None = None
    """Word vectors to start the embedding from (GloVe, word2vec or fastText text format, plain or .gz)."""

    def unread(self) -> dict[str, str]:
        """A language model has no labels and pools nothing; a single layer has nothing between layers.

        Numbers have no tokens; without a projection the layers read as many as there are channels.
        """
        unread = {"hidden_dropout": "with --layers 2 or more"} if self.layers == 1 else {}
        if self.values is None:
            unread |= dict.fromkeys((*WindowOptions.model_fields, "projection"), "with --values")
        else:
            unread |= dict.fromkeys({*TextOptions.model_fields} - {"max_length"}, "without --values")
            unread |= dict.fromkeys(("text", "embedding_dropout", "vectors"), "without --values")
            unread |= {} if self.projection else dict.fromkeys(("embedding_size", "input_dropout"), "with --projection")
            unread |= {"max_length": "without --window"} if self.window else {"stride": "with --window"}
        if self.task == "language_modeling":
            unread |= dict.fromkeys(("label", "pooling"), "with --task classification")
            return unread if self.bptt else unread | dict.fromkeys(("ar", "tar"), "with --bptt")
        return unread | dict.fromkeys(LanguageModelingOptions.model_fields, "with --task language_modeling")


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
    prepared = _features(options)
    splits = read_splits(options, options.seed, labelled=labelled, features=prepared)
    if not labelled and not len(splits.valid):
        least = math.ceil(LEAST_HELD_OUT / options.valid)
        raise DataError(
            f"{options.data} has {len(splits.train)} rows: too few to hold {LEAST_HELD_OUT} of them out; "
            f"give {least} at least, or raise --valid"
        )
    featurizer = fit_featurizer(splits.train.inputs, prepared)
    settings = {"labels": splits.labels, "pooling": options.pooling}
    settings |= options.only(LanguageModelingOptions).model_dump()
    config = ModelConfig(
        **featurizer.sizes,
        encoder=_encoder(options, featurizer),
        dropout=options.only(DropoutOptions),
        featurizer=prepared,
        task={"name": options.task} | {k: v for k, v in settings.items() if k in made.model_fields},
    )
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
        train, test = splits.train.encode(featurizer, ()), splits.test.encode(featurizer, ())
        facts["metrics"] = {splits.test_name: task.count(model, test, 64).figures()}
        facts["baselines"] = {"unigram": unigram(train, test, config.vocabulary_size)}
    return Outcome(checkpoint, facts | {"method": options.task})


def _features(options: PretrainOptions) -> FeatureOptions:
    """Return how the rows are to be prepared."""
    if options.values is None:
        return options.only(TextOptions)
    windows = options.only(WindowOptions).model_dump()
    return NumericOptions(**windows, max_length=options.max_length, columns=options.names)


def _encoder(options: PretrainOptions, featurizer: Featurizer) -> EncoderOptions:
    """Return the shape; without a projection the layers read a number a channel."""
    shape = options.only(EncoderOptions)
    if options.values is None:
        return shape.model_copy(update={"projection": False})
    return shape if shape.projection else shape.model_copy(update={"embedding_size": featurizer.sizes["channels"]})


def _start_from_vectors(options: PretrainOptions, model: SequenceModel, featurizer: TextFeaturizer) -> list[str]:
    assert options.vectors is not None  # noqa: S101 - the caller has looked
    found, size = read_vectors(options.vectors, featurizer.numbers)
    if size != options.embedding_size:
        raise ConfigError(
            f"{options.vectors} holds vectors of {size} numbers, the model embeds into {options.embedding_size}: "
            f"add --embedding-size {size}"
        )
    embedding_VE = model.get_parameter("encoder.embedding.weight").data
    for number, vector in found.items():
        embedding_VE[number] = torch.from_numpy(vector)
    return [f"{len(found)} of {len(featurizer.vocabulary)} tokens start from {options.vectors.name}."]
