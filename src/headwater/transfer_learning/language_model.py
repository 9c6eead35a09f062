"""A language model of the target's text from that of another text: the second step of ULMFiT.

Howard and Ruder 2018, arXiv:1801.06146, section 3.2. The outcome is a language model again, over the tokens of both.
"""

from __future__ import annotations

from headwater.checkpoint import Checkpoint
from headwater.errors import ConfigError
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
