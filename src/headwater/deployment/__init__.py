"""Export: a model as a file that runs without torch. A new target is a class and a row in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.registry import lookup

if TYPE_CHECKING:
    from headwater.deployment.base import Target

EXPORT_TARGETS = {"onnx": "headwater.deployment.onnx_target:OnnxTarget"}


def export_target(name: str) -> Target:
    """Return the target of a name in the table or of an entry point in ``headwater.export_targets``."""
    made: Target = lookup("headwater.export_targets", EXPORT_TARGETS, name)()
    return made
