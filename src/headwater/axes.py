"""What lies along the axes of a model's tensors: so that a change of width finds every row and column that it concerns.

A *space* is a set of units that one part of the model makes and others read: the numbers of the embedding, or the
states of one layer and direction.
"""

from __future__ import annotations

from dataclasses import dataclass

EMBEDDING = "embedding"
"""The space of the embedded tokens' numbers."""


@dataclass(frozen=True)
class Axis:
    """One axis of a tensor.

    Attributes:
        spaces: Whose units lie along it, block after block; empty where it holds something else, such as labels.
        reads: Whether the tensor reads these units; else it makes them.
    """

    spaces: tuple[str, ...] = ()
    reads: bool = False


Axes = dict[str, tuple[Axis, ...]]
"""By the names of the tensors."""
