"""A language model of the target's text from that of another text: the second step of ULMFiT.

Howard and Ruder 2018, arXiv:1801.06146, section 3.2. The outcome is a language model again, over the tokens of both.
"""

from __future__ import annotations

from dataclasses import replace

from headwater.checkpoint import Checkpoint
from headwater.errors import ConfigError, DataError
from headwater.fitting import Splits, read_splits
from headwater.transfer_learning.options import SCRATCH, TransferOptions

LANGUAGE_MODELING = "language_modeling"


def check_source(source: Checkpoint, options: TransferOptions) -> None:
    """Refuse a source that can't become a language model.

    Raises:
        ConfigError: It reads ahead, or has no decoder and no new one is to be made.
    """
    if source.config.encoder.bidirectional:
        raise ConfigError(
            "task = 'language_modeling': a language model must not read ahead, but the source reads in both "
            "directions: start from one that was made with --no-bidirectional"
        )
    if options.method != SCRATCH and options.head != "new" and not has_decoder(source):
        raise ConfigError(
            f"task = 'language_modeling': the source is a {source.config.task['name']} model, without a decoder to "
            "carry over: start from a language model, or add --head new for a decoder that has learned nothing"
        )


def has_decoder(source: Checkpoint) -> bool:
    """Return whether the source predicts tokens."""
    return bool(source.config.task["name"] == LANGUAGE_MODELING)


def text_splits(options: TransferOptions) -> Splits:
    """Read the target's rows without their labels, chosen and held out as a classifier's where they could be its own.

    So a classifier that follows on the same rows is measured on texts that the language model hasn't read either.
    """
    try:
        splits = read_splits(options, options.seed)
    except DataError:  # of the labels, or else it comes again
        return read_splits(options, options.seed, labelled=False)
    train, valid, test = (replace(rows, labels=[]) for rows in (splits.train, splits.valid, splits.test))
    return replace(splits, train=train, valid=valid, test=test, labels=(), file_labels=[])
