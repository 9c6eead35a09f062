"""The verb `push`: a checkpoint to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headwater import hub
from headwater.checkpoint import Checkpoint
from headwater.config import Config
from headwater.errors import ConfigError


class PushOptions(Config):
    """Options of `push`."""

    to: Annotated[str, Field(pattern=f"^{hub.PREFIX}[^@]+$")]
    """The repository, `hf:OWNER/NAME`; it is made if it doesn't exist."""
    private: bool = True
    """Whether a new repository is seen by its owner alone."""


def push(checkpoint: Checkpoint, options: PushOptions) -> dict[str, str]:
    """Write a checkpoint into a repository of the hub: its files as they are, and the card as the front page.

    Returns:
        The commit's address, as ``pushed``.

    Raises:
        ConfigError: It holds clients' own models, or was never saved.
        CheckpointError: The hub can't be used.
    """
    if checkpoint.personal:
        raise ConfigError(
            f"the checkpoint holds the own models of {len(checkpoint.personal)} clients, which would be published "
            "with it: push the shared one that it was made from"
        )
    if checkpoint.path is None:
        raise ConfigError("the checkpoint has no folder yet: save it first")
    return {"pushed": hub.push(checkpoint.path, options.to, private=options.private)}
