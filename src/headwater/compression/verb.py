"""Compressing a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from headwater.checkpoint import MODEL_FILE, Checkpoint
from headwater.comparison import Comparison, MeasureOptions, measuring_rows
from headwater.compression import COMPRESSORS, compressor
from headwater.config import RunOptions
from headwater.errors import ConfigError
from headwater.registry import name_in
from headwater.stage import Outcome, run_stage


class CompressOptions(MeasureOptions, RunOptions):
    """Options of `compress`."""

    method: Annotated[str, name_in("headwater.compressors", COMPRESSORS)] = "int8"
    """`int8`: each row of a matrix as 8-bit numbers times a scale."""
    client: str | None = None
    """The column that names each row's client, where the checkpoint holds the clients' own models."""

    def unread(self) -> dict[str, str]:
        """Without rows nothing is measured."""
        return super().unread() | ({"client": "with --data"} if self.data is None else {})


def compress(checkpoint: Checkpoint, options: CompressOptions) -> Checkpoint:
    """Make a checkpoint smaller; the clients' own weights stay in float32.

    Returns:
        The checkpoint, as written to ``options.out``. Its record holds the sizes and, where rows were given,
        the figures before and after with the share of equal predictions.

    Raises:
        ConfigError: The checkpoint is compressed already.
        HeadwaterError: The data or the output folder can't be used.
    """
    if checkpoint.config.compression:
        raise ConfigError(
            f"the checkpoint is compressed already ({checkpoint.config.compression}): "
            "compress the one that it was made from"
        )
    run_stage("compress", options, lambda _: _work(checkpoint, options), checkpoint)
    return Checkpoint.load(options.out)


def _work(checkpoint: Checkpoint, options: CompressOptions) -> Outcome:
    config = checkpoint.config.model_copy(update={"compression": options.method})
    smaller = replace(checkpoint, config=config, tensors=compressor(options.method)(checkpoint.weights()), path=None)
    size, smaller_size = checkpoint.sizes()[MODEL_FILE], smaller.sizes()[MODEL_FILE]
    share = f"{smaller_size / size:.1%} of the {size:,} in float32"
    notes = [f"{MODEL_FILE} has {smaller_size:,} bytes in {options.method}, {share}."]
    facts: dict[str, Any] = {"device": "cpu", "method": options.method}
    rows = measuring_rows(options, checkpoint.labels, checkpoint.featurizer.options, options.client)
    if rows is not None:
        before_NK, after_NK = checkpoint.probabilities(rows), smaller.probabilities(rows)
        comparison = Comparison.of(rows, checkpoint.labels, before_NK, after_NK)
        facts |= comparison.facts()
        notes.append(f"The predicted label is the same on {comparison.agreement:.2%} of {len(rows):,} rows.")
    return Outcome(smaller, facts | {"notes": notes}, (checkpoint,))
