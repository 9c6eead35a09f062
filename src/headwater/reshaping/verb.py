"""The verb `reshape`: a checkpoint of another shape, with what the model has learned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.comparison import Comparison
from headwater.config import RunOptions, ValueColumns
from headwater.data.batches import Batch, batch_of
from headwater.data.examples import Examples
from headwater.data.rows import LEAST_HELD_OUT, Rows, hold_out, read_rows
from headwater.errors import ConfigError, DataError
from headwater.features.featurizer import Featurizer
from headwater.model import MOST_UNITS, SequenceModel
from headwater.reshaping.layers import drop_layer, insert_layer
from headwater.reshaping.shrinking import shrink
from headwater.reshaping.widths import built, grow
from headwater.stage import Outcome, run_stage
from headwater.tasks import task_class
from headwater.tasks.classification import PooledLinear
from headwater.weights import Weights

_MOST_TOKENS, _MOST_STEPS = 50_000, 2_000
"""Padded tokens that a repair is fitted on, and steps whose logits are compared where each step has some."""
_MEASURED = 0.3
"""Share of the rows that repairs aren't fitted on, for the figures."""
_EXACT = 1e-5
"""The largest difference of a number that the head puts out, times the largest number, that rounding explains."""


class ReshapeOptions(ValueColumns, RunOptions):
    """Options of `reshape`; several changes are made in the order of this list."""

    drop_layer: Annotated[int, Field(ge=0)] = 0
    """Take out this layer, counted from 1; its readers read the layer below by the map that fits best on `--data`."""
    insert_layer: Annotated[int, Field(ge=0)] = 0
    """Put in a layer above this one, counted from 1; the function stays the same."""
    bidirectional: bool = False
    """Add a backward direction to each layer; the function stays the same."""
    hidden_size: Annotated[int, Field(ge=0, le=MOST_UNITS)] = 0
    """Units of each layer and direction: with more the function stays the same, with fewer the most important ones on
    `--data` stay; 0 leaves them as they are."""
    embedding_size: Annotated[int, Field(ge=0, le=MOST_UNITS)] = 0
    """Numbers a token is embedded into, or a step's channels are projected to; as for the units."""
    data: str | None = None
    """Rows to fit repairs on, and others of them to compare both models on: a file, or `card:NAME/SPLIT`; a
    classifier's are labelled. What is put in or widened can do without."""
    text: str = "text"
    """The column that holds the text."""
    label: str = "label"
    """The column that holds a classifier's label."""

    def unread(self) -> dict[str, str]:
        """Columns are of the rows."""
        return dict.fromkeys(("text", "label", *ValueColumns.model_fields), "with --data") if self.data is None else {}


def reshape(checkpoint: Checkpoint, options: ReshapeOptions) -> Checkpoint:
    """Change a model's shape and keep what it has learned.

    Returns:
        The checkpoint, as written to ``options.out``. Its record says how far the new model is from the old one.

    Raises:
        ConfigError: The model can't take that shape.
        HeadwaterError: The data or the output folder can't be used.
    """
    run_stage("reshape", options, lambda _: _work(checkpoint, options), checkpoint)
    return Checkpoint.load(options.out)


@dataclass
class _Surgery:
    """A model on its way from shape to shape."""

    config: ModelConfig
    weights: Weights
    seed: int
    exact: bool = True

    def operate(self, options: ReshapeOptions, batch: Batch) -> None:
        """Make the changes in their order."""
        if options.drop_layer:
            self.drop(options.drop_layer - 1, batch)
        if options.insert_layer:
            self.insert(options.insert_layer)
        if options.bidirectional:
            self.widen(bidirectional=True)
        for name in ("hidden_size", "embedding_size"):
            wanted, there = getattr(options, name), getattr(self.config.encoder, name)
            if wanted > there:
                self.widen(**{name: wanted})
            elif 0 < wanted < there:
                self.narrow(batch, **{name: wanted})

    def drop(self, number: int, batch: Batch) -> None:
        self.exact = False
        self.config, self.weights = drop_layer(self.config, self.weights, number, batch)

    def insert(self, number: int) -> None:
        self.config, self.weights = insert_layer(self.config, self.weights, number, self.seed)

    def widen(self, **sizes: int) -> None:
        larger = self.config.model_copy(update={"encoder": self.config.encoder.model_copy(update=sizes)})
        self.weights = grow(self.config, self.weights, larger, self.seed)
        self.config = larger

    def narrow(self, batch: Batch, **sizes: int) -> None:
        self.exact = False
        smaller = self.config.model_copy(update={"encoder": self.config.encoder.model_copy(update=sizes)})
        self.weights = shrink(self.config, self.weights, smaller, batch)
        self.config = smaller


def _work(checkpoint: Checkpoint, options: ReshapeOptions) -> Outcome:
    before = checkpoint.config
    if checkpoint.personal:
        raise ConfigError("the checkpoint holds clients' own weights of the old shape: reshape first, then personalize")
    inexact = _check(before, options)
    fitted, measured = _rows(checkpoint, options, apart=inexact)
    batch = (
        _random_batch(checkpoint.featurizer, options.seed)
        if fitted is None
        else _batch(checkpoint, fitted, options.seed)
    )
    surgery = _Surgery(before.model_copy(update={"compression": ""}), checkpoint.weights(), options.seed)
    surgery.operate(options, batch)
    model = built(surgery.config, surgery.weights)
    made = Checkpoint(surgery.config, checkpoint.featurizer, {}, checkpoint.lineage).with_model(model)
    notes = [_shapes(before, made.config)]
    if before.compression:
        notes.append(f"The {before.compression} weights became float32.")
    facts: dict[str, Any] = {"device": "cpu", "notes": notes}
    if before.task["name"] != "representation":
        compared = batch if measured is None else _batch(checkpoint, measured, options.seed)
        notes.append(
            _difference(
                checkpoint.model(),
                model,
                compared,
                surgery,
                random=checkpoint.featurizer.unit if measured is None else "",
            )
        )
    elif options.drop_layer == before.encoder.layers:
        notes.append("Nothing reads the last layer of a representation: it was taken out, and nothing makes up for it.")
    if measured is not None and checkpoint.labels:
        before_NK, after_NK = checkpoint.probabilities(measured), made.probabilities(measured)
        facts |= Comparison.of(measured, checkpoint.labels, before_NK, after_NK).facts()
    if fitted is not None and measured is not None:
        facts["data"] = ([fitted.use("train")] if inexact else []) + [measured.use("test")]
    return Outcome(made, facts, (checkpoint,))


def _check(config: ModelConfig, options: ReshapeOptions) -> bool:
    """Return whether some change can't keep the function exactly.

    Raises:
        ConfigError: Nothing would change, or something can't.
    """
    changes = ("drop_layer", "insert_layer", "bidirectional", "hidden_size", "embedding_size")
    if not any(getattr(options, name) for name in changes):
        raise ConfigError("nothing to change: give --hidden-size, --embedding-size, --insert-layer, ...")
    if options.embedding_size and config.channels and not config.encoder.projection:
        raise ConfigError("the model's layers read the channels as they are: leave --embedding-size out")
    if options.bidirectional and config.encoder.bidirectional:
        raise ConfigError("the model reads in both directions already: leave --bidirectional out")
    if options.bidirectional and task_class(str(config.task["name"])).one_direction:
        raise ConfigError(f"a {config.task['name']} model must not read ahead: leave --bidirectional out")
    sizes = {
        name: (getattr(options, name), getattr(config.encoder, name)) for name in ("hidden_size", "embedding_size")
    }
    for name, (wanted, there) in sizes.items():
        if wanted == there:
            raise ConfigError(f"the model's {name} is {there} already: leave --{name.replace('_', '-')} out")
    inexact = [name for name, (wanted, there) in sizes.items() if 0 < wanted < there]
    inexact += ["drop_layer"] if options.drop_layer else []
    if inexact and options.data is None:
        flag = "--" + inexact[0].replace("_", "-")
        raise ConfigError(f"{flag} can't keep the function exactly and needs rows to stay close to it: add --data FILE")
    return bool(inexact)


def _rows(checkpoint: Checkpoint, options: ReshapeOptions, *, apart: bool) -> tuple[Rows | None, Rows | None]:
    """Return the rows to fit repairs on and those to measure on; `apart`: others, which the repairs haven't seen."""
    if options.data is None:
        return None, None
    label = options.label if checkpoint.labels else None
    values, features = options.only(ValueColumns), checkpoint.featurizer.options
    rows = read_rows(options.data, text=options.text, label=label, values=values, features=features)
    if checkpoint.labels:
        rows.targets(checkpoint.labels)
    if not apart:
        return rows, rows
    fitted, measured = hold_out(rows, _MEASURED, options.seed)
    if not len(measured):
        least = math.ceil(LEAST_HELD_OUT / _MEASURED)
        raise DataError(
            f"{options.data} has {len(rows)} rows: to fit on some and measure on others give {least} at least"
        )
    return fitted, measured


def _batch(checkpoint: Checkpoint, rows: Rows, seed: int) -> Batch:
    """Return rows drawn from all: in a file they may be sorted."""
    examples = rows.encode(checkpoint.featurizer, checkpoint.labels)
    order = np.random.default_rng(seed).permutation(len(examples))
    padded = np.maximum.accumulate(examples.lengths_N[order]) * np.arange(1, len(examples) + 1)
    return batch_of(examples, order[: max(1, int((padded <= _MOST_TOKENS).sum()))])


def _random_batch(featurizer: Featurizer, seed: int) -> Batch:
    """Return random rows: the function of a model that must stay the same can be compared on any."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, min(40, featurizer.options.max_length) + 1, 64)
    rows = [featurizer.draw(random, 1, int(length))[0] for length in lengths]
    return batch_of(Examples(rows), np.arange(len(rows)))


def _shapes(before: ModelConfig, after: ModelConfig) -> str:
    def say(config: ModelConfig) -> str:
        shape = config.encoder
        directions = "two directions" if shape.bidirectional else "one direction"
        direct = config.channels and not shape.projection
        reads = f"{config.channels} channels" if direct else f"embedding {shape.embedding_size}"
        return f"{shape.layers} x {shape.hidden_size} units, {directions}, {reads}"

    return f"From {say(before)} to {say(after)}."


def _difference(old: SequenceModel, new: SequenceModel, batch: Batch, surgery: _Surgery, *, random: str) -> str:
    """Return what the largest difference is; `random`: of what the rows were drawn, if they were.

    Raises:
        ConfigError: It isn't what it must be.
    """
    was, now = (_outputs(model, batch) for model in (old, new))
    largest = float((was - now).abs().max())
    if surgery.exact and largest > _EXACT * max(1.0, float(was.abs().max())):
        raise ConfigError(
            f"the new model's logits differ by up to {largest:.2g} where they must be the same: "
            f"the axes of the task {surgery.config.task['name']!r} or of the cell are wrong"
        )
    rows = f"{len(batch.lengths_B):,} rows" + (f" of random {random}" if random else "")
    return f"The largest difference of a logit to the old model's on {rows} is {largest:.2g}."


@torch.inference_mode()
def _outputs(model: SequenceModel, batch: Batch) -> Tensor:
    """Return the logits: of all rows, or of the first steps of a language model."""
    model.eval()
    if isinstance(model.head, PooledLinear):
        return cast(Tensor, model(batch.inputs, batch.lengths_B))
    y_NF, _ = model.encoder.valid_states(batch.inputs, batch.lengths_B)
    return cast(Tensor, model.head(y_NF[:_MOST_STEPS], batch.lengths_B))
