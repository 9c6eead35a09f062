"""The errors that Headwater raises on purpose.

::

    HeadwaterError            the root: the command line prints its message and exits with 2
    ├── ConfigError           an option is unknown, has a wrong type or contradicts another
    ├── DataError             a data file, column, label or card can't be used
    ├── CheckpointError       a checkpoint or artifact is damaged, foreign or of another version
    ├── OutputError           an output folder is taken, or the disk is full or read-only
    ├── ExportError           a model can't be written for a target, or its artifact is not equal to it
    ├── FederationError       a client failed; names the client, the round and the stage
    ├── WorkerError           a worker process died or failed
    └── MissingDependency     an optional package is needed; names the extra that brings it

Every message says what was given, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any


class HeadwaterError(Exception):
    """The root of all errors raised on purpose."""


class ConfigError(HeadwaterError):
    """An option is unknown, has a wrong type or contradicts another."""


class DataError(HeadwaterError):
    """A data file, column, label or card can't be used."""


class CheckpointError(HeadwaterError):
    """A checkpoint or artifact is damaged, foreign or of another version."""


class OutputError(HeadwaterError):
    """An output folder is taken, or can't be written."""


class ExportError(HeadwaterError):
    """A model can't be written for a target, or its artifact is not equal to the model."""


class FederationError(HeadwaterError):
    """A client failed.

    Args:
        message: What went wrong and what to do.
        client: The client's name.
        round_number: The round, counted from 1.
        stage: ``"train"``, ``"send"``, ``"receive"`` or ``"aggregate"``.
    """

    def __init__(self, message: str, *, client: str, round_number: int, stage: str) -> None:
        super().__init__(f"client {client!r}, round {round_number}, {stage}: {message}")
        self.client = client
        self.round_number = round_number
        self.stage = stage
        self.reason = message

    def __reduce__(self) -> tuple[Any, ...]:
        """Allow a worker process to send it."""
        rebuild = functools.partial(type(self), client=self.client, round_number=self.round_number, stage=self.stage)
        return rebuild, (self.reason,), self.__dict__


class WorkerError(HeadwaterError):
    """A worker process died, or failed in a way that can't be sent between processes."""


class MissingDependency(HeadwaterError):  # noqa: N818 - reads as what it is
    """An optional package is needed.

    Args:
        package: The package that could not be imported.
        extra: The extra of this project that installs it.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which isn't installed: pip install 'headwater[{extra}]'"
        )


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
