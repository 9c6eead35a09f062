"""Progress of long work: a bar with the figures on it, plain lines where the output is no terminal."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LINE_SECONDS = 5.0
"""How often a plain line is printed between epochs."""


class Progress:
    """Shows one piece of long work on standard error.

    Args:
        title: What is being done.
        quiet: Show nothing.
    """

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        self.title = title
        self.quiet = quiet
        console = Console(stderr=True)
        self._terminal = console.is_terminal and not quiet
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
            disable=not self._terminal,
        )
        self._task = self._bar.add_task(title, total=None, figures="")
        self._figures = ""
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        """Start showing."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        self._bar.stop()

    def advance(self, done: int, total: int, loss: float | None = None) -> None:
        """Show that `done` of `total` steps are done."""
        shown = self._figures + (f" loss {loss:.3f}" if loss is not None else "")
        if self._terminal:
            self._bar.update(self._task, completed=done, total=total, figures=shown)
        elif not self.quiet and time.monotonic() - self._printed > _LINE_SECONDS:
            self._line(f"step {done}/{total}{shown}")

    def epoch_done(
        self, epoch: int, epochs: int, figures: dict[str, float], *, unit: str = "epoch", more: str = ""
    ) -> None:
        """Show the figures at the end of an epoch or a round, and what `more` there is to say."""
        said = [f"{name} {value:.3f}" for name, value in figures.items() if name != "n"]
        self._figures = " " + " ".join([*said, more] if more else said)
        if not self._terminal and not self.quiet:
            self._line(f"{unit} {epoch}/{epochs}{self._figures}")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if not self.quiet:
            self._bar.console.print(text, markup=False, highlight=False) if self._terminal else self._line(text)

    def _line(self, text: str) -> None:
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is where lines are printed
        self._printed = time.monotonic()
