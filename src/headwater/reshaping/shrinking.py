"""Fewer units: those that matter most stay.

Shapes: N valid steps or rows, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.axes import EMBEDDING, Axes, Axis
from headwater.checkpoint import ModelConfig
from headwater.data.batches import Batch
from headwater.reshaping.reading import what_is_read
from headwater.reshaping.widths import Widths, axes_of, built, keep_units, widths_of
from headwater.weights import Weights


def shrink(config: ModelConfig, weights: Weights, smaller: ModelConfig, batch: Batch) -> Weights:
    """Return weights of a smaller model: of each space, the units that matter most.

    A unit matters by how much it moves what reads it: over all reading weights, the sum of their squares times the
    variance, over the batch, of what they read. What the units that go say on average is added to their readers'
    biases. The decoder of a language model gets no such repair for numbers of the embedding that go, and the candidate
    of a GRU that resets before is given the mean of the state before its reset.

    Args:
        config: Of the model.
        weights: Of the model.
        smaller: Of the new one: fewer units, or a shorter embedding.
        batch: Rows to measure on.
    """
    model = built(config, weights)
    axes, widths, wanted = axes_of(model, config), widths_of(config), widths_of(smaller)
    read = what_is_read(model, axes, batch)
    matter = _how_much_units_matter(weights, axes, widths, read)
    kept = {
        space: matter[space].topk(wanted[space]).indices.sort().values
        for space, width in widths.items()
        if wanted[space] < width
    }
    repaired = dict(weights)
    for name in read.keys() & weights.keys():
        bias = name.replace("weight", "bias")
        mean_F = read[name].mean(0) * _gone(axes[name][-1], widths, kept)
        repaired[bias] = weights[bias] + weights[name] @ mean_F
    return keep_units(repaired, axes, widths, kept)


def _how_much_units_matter(weights: Weights, axes: Axes, widths: Widths, read: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a number for each unit of each space."""
    matter = {space: torch.zeros(width) for space, width in widths.items()}
    for name, of_name in axes.items():
        for place, axis in enumerate(of_name):
            if not axis.reads:
                continue
            variance_F = read[EMBEDDING if axis.spaces == (EMBEDDING,) else name].var(0, unbiased=False)
            squares_F = weights[name].square().movedim(place, 0).reshape(len(variance_F), -1).sum(1)
            parts = torch.split(squares_F * variance_F, [widths[space] for space in axis.spaces])
            for space, part in zip(axis.spaces, parts, strict=True):
                matter[space] += part
    return matter


def _gone(axis: Axis, widths: Widths, kept: dict[str, Tensor]) -> Tensor:
    """Return 1 where an axis holds a unit that goes, else 0."""
    parts = []
    for space in axis.spaces:
        part = torch.full((widths[space],), float(space in kept))
        if space in kept:
            part[kept[space]] = 0.0
        parts.append(part)
    return torch.cat(parts)
