"""Readers of other people's recurrent networks. A new source is a function here and a row in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.registry import lookup

if TYPE_CHECKING:
    from headwater.checkpoint import Checkpoint

SOURCES = {"jieba_lac": "headwater.pretrained.lac_checkpoint:lac_checkpoint"}
PREFIX = "pretrained:"


def open_checkpoint(place: str) -> Checkpoint:
    """Return the checkpoint of a folder, or of ``pretrained:NAME``.

    Raises:
        CheckpointError: The folder is no checkpoint or is damaged, or the source's package isn't there.
        ConfigError: There is no such source.
    """
    from headwater.checkpoint import Checkpoint

    if not place.startswith(PREFIX):
        return Checkpoint.load(place)
    made: Checkpoint = lookup("headwater.pretrained", SOURCES, place.removeprefix(PREFIX))()
    return made
