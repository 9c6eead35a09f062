"""Episodes: a few rows of some classes to adapt to, and others of the same classes to be tested by.

Each is a pure function of the seed, of what it is for, and of its number.

Shapes: S support rows, Q query rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from headwater.config import RowOptions, ValueColumns
from headwater.data.rows import Rows, label_set, read_rows
from headwater.errors import ConfigError, DataError, did_you_mean
from headwater.features.featurizer import FeatureOptions

_HELD, _TRAIN, _TEST = 0x4E1D, 0x7EA1, 0x7E57  # what numbers are drawn for


class EpisodeOptions(RowOptions):
    """Which small tasks to learn from, and which to measure by."""

    tasks: str | None = None
    """The column that names each row's task, such as a product's domain: an episode has the rows of one task and all
    its labels, which mean the same in every task. Without it, an episode's classes are labels drawn for it."""
    held_tasks: str = ""
    """Tasks (without `--tasks`, labels) that are never learned from but measured by, with commas between; by default a
    share of them is drawn."""
    held_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the tasks (without `--tasks`, of the labels) that is drawn to measure by."""
    ways: Annotated[int, Field(ge=2)] = 5
    """Labels that are drawn for an episode."""
    shots: Annotated[int, Field(ge=1)] = 5
    """Rows of each class of an episode to adapt to."""
    queries: Annotated[int, Field(ge=1)] = 10
    """Further rows of each class of an episode, to be tested by."""

    def unread(self) -> dict[str, str]:
        """Tasks bring their labels; tasks that are named aren't drawn."""
        unread = {} if self.tasks is None else {"ways": "without --tasks"}
        return unread | ({"held_share": "without --held-tasks"} if self.held_tasks else {})


@dataclass(frozen=True)
class Episode:
    """A small task.

    Attributes:
        rows: What it is drawn from.
        labels: Of its classes, in the order of their numbers.
        support_S: The numbers of the rows to adapt to, class after class.
        query_Q: Those of the rows to be tested by.
        seed: For what is drawn in working on it.
    """

    rows: Rows
    labels: tuple[str, ...]
    support_S: np.ndarray
    query_Q: np.ndarray
    seed: int

    def support(self) -> Rows:
        """Return the rows to adapt to."""
        return self.rows.take(self.support_S)

    def query(self) -> Rows:
        """Return the rows to be tested by."""
        return self.rows.take(self.query_Q)

    def both(self) -> Rows:
        """Return all its rows."""
        return self.rows.take(np.concatenate([self.support_S, self.query_Q]))


@dataclass(frozen=True)
class Episodes:
    """The episodes of some tasks, without end.

    Attributes:
        rows: What they are drawn from.
        classes: Row numbers by task and label; each episode is of one task.
        labels: Those that all tasks share; empty where each episode draws classes of its own.
        options: How many classes and rows.
        seed: Fixes all draws.
        purpose: Tells the draws of one set of episodes from those of another.
    """

    rows: Rows
    classes: Mapping[str, Mapping[str, np.ndarray]]
    labels: tuple[str, ...]
    options: EpisodeOptions
    seed: int
    purpose: int

    def __getitem__(self, number: int) -> Episode:
        """Return an episode by its number."""
        rng = np.random.default_rng([self.seed, self.purpose, number])
        found = self.classes[list(self.classes)[rng.integers(len(self.classes))]]
        chosen = list(found)
        if not self.labels:
            chosen = [chosen[i] for i in rng.permutation(len(chosen))[: self.options.ways]]
        shots, queries = self.options.shots, self.options.queries
        drawn = [rng.choice(found[label], shots + queries, replace=False) for label in chosen]
        support_S = np.concatenate([numbers[:shots] for numbers in drawn])
        query_Q = np.concatenate([numbers[shots:] for numbers in drawn])
        return Episode(self.rows, self.labels or tuple(chosen), support_S, query_Q, int(rng.integers(2**31)))

    def used(self) -> Rows:
        """Return the rows that episodes may have."""
        numbers = [rows for classes in self.classes.values() for rows in classes.values()]
        return self.rows.take(np.sort(np.concatenate(numbers)))


def read_episodes(
    options: EpisodeOptions, seed: int, features: FeatureOptions | None = None
) -> tuple[Episodes, Episodes, list[str]]:
    """Read the rows and part their tasks; `features` says how they will be prepared.

    Returns:
        The episodes to learn from, those to measure by, which share no task (without a column of tasks, no label), and
        what a reader should know.

    Raises:
        ConfigError: The rows are windows, of which those of one recording would stand on both sides of an episode.
        DataError: The rows can't be used, or too few tasks or labels have the rows of an episode.
    """
    values, text, label = options.only(ValueColumns), options.text, options.label
    rows = read_rows(options.data, text=text, label=label, client=options.tasks, values=values, features=features)
    if rows.starts:
        raise ConfigError(
            "an episode would adapt to windows of a recording and be tested by others of the same: leave --window out, "
            "and start from a model that reads recordings whole"
        )
    labels = label_set(rows)
    classes, small = _large_enough(rows, labels, options)
    kind, least, least_held = ("tasks", 2, 1) if options.tasks else ("labels", options.ways, options.ways)
    units = list(classes) if options.tasks else list(classes[""])
    needed = options.shots + options.queries
    if len(units) < least + least_held:
        of_each = " of each of two labels at least" if options.tasks else ""
        raise DataError(
            f"{options.data}: {len(units)} {kind} have {needed} rows{of_each}, as many as an episode takes; to learn "
            f"from {least} of them and measure by {least_held} others, give more rows, or lower --shots, --queries"
            + (" or --ways" if not options.tasks else "")
        )
    held = _held(options, units, kind, least, least_held, seed)
    parts = ([unit for unit in units if unit not in held], held)
    train, test = (
        Episodes(rows, _part(classes, part, options), labels if options.tasks else (), options, seed, purpose)
        for part, purpose in zip(parts, (_TRAIN, _TEST), strict=True)
    )
    notes = [f"{len(parts[0])} {kind} to learn from; to measure by: {', '.join(held)}."]
    if small:
        what = "labels of single tasks" if options.tasks else "labels"
        notes.append(f"{small} {what} have fewer than {needed} rows, as an episode takes, and were left out.")
    return train, test, notes


def _large_enough(
    rows: Rows, labels: Sequence[str], options: EpisodeOptions
) -> tuple[dict[str, dict[str, np.ndarray]], int]:
    """Return the row numbers by task and label, of those with enough rows for an episode, and how many haven't."""
    tasks = rows.by_client() if options.tasks else {"": np.arange(len(rows))}
    given = np.array(rows.labels)
    found, small = {}, 0
    for task, numbers in tasks.items():
        groups = {label: numbers[given[numbers] == label] for label in labels}
        groups = {label: group for label, group in groups.items() if len(group)}
        large = {label: group for label, group in groups.items() if len(group) >= options.shots + options.queries}
        small += len(groups) - len(large)
        if len(large) >= 2 or not options.tasks:
            found[task] = large
    return found, small


def _held(
    options: EpisodeOptions, units: Sequence[str], kind: str, least: int, least_held: int, seed: int
) -> list[str]:
    """Return the tasks or labels to measure by, in order."""
    if options.held_tasks:
        named = [name.strip() for name in options.held_tasks.split(",")]
        for name in named:
            if name not in units:
                raise DataError(
                    f"held_tasks: {name!r} is none of the {kind} in {options.data} with enough rows"
                    f"{did_you_mean(name, units)}; there are: {', '.join(units)}"
                )
        held = [unit for unit in units if unit in named]
    else:
        count = min(max(least_held, round(options.held_share * len(units))), len(units) - least)
        drawn = np.random.default_rng([seed, _HELD]).choice(len(units), count, replace=False)
        held = [units[i] for i in sorted(drawn)]
    if len(held) < least_held or len(units) - len(held) < least:
        raise DataError(
            f"held_tasks = {options.held_tasks!r}: of {len(units)} {kind} at least {least} are needed to learn from "
            f"and {least_held} to measure by, so name {least_held} to {len(units) - least} of them"
        )
    return held


def _part(
    classes: Mapping[str, Mapping[str, np.ndarray]], part: Sequence[str], options: EpisodeOptions
) -> dict[str, Mapping[str, np.ndarray]]:
    if options.tasks:
        return {task: classes[task] for task in part}
    return {"": {label: classes[""][label] for label in part}}
