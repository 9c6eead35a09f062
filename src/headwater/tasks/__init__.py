"""Tasks: a task is its head, its loss, its figures and how they are computed. A new task is a file and a row here."""

from __future__ import annotations

from headwater.registry import lookup
from headwater.tasks.base import Task

TASKS = {
    "classification": "headwater.tasks.classification:Classification",
    "language_modeling": "headwater.tasks.language_modeling:LanguageModeling",
    "representation": "headwater.tasks.representation:Representation",
}


def task_class(name: str) -> type[Task]:
    """Return the task class of a name in the table or of an entry point in ``headwater.tasks``."""
    found: type[Task] = lookup("headwater.tasks", TASKS, name)
    return found


__all__ = ["TASKS", "Task", "task_class"]
