"""Other widths with the same function: weights are carried into a larger model, or the best units into a smaller one.

Growing. The larger model is drawn anew; then the old weights take their places, and whatever reads units that are new
reads them with weight zero. So the new units compute something from the first step on, but nobody hears it: the
function is the old one exactly, there is no symmetry to break, and the reading weights learn at once. Growth that keeps
the function is Net2Net's idea (Chen et al. 2016, arXiv:1511.05641), which copies units instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from headwater.axes import EMBEDDING, Axes, Axis
from headwater.checkpoint import ModelConfig
from headwater.model import SequenceModel
from headwater.weights import Weights, weights_of

Widths = Mapping[str, int]
"""How many units each space has."""


def axes_of(model: SequenceModel, config: ModelConfig) -> Axes:
    """Return what lies along the axes of each parameter of a model.

    Raises:
        ConfigError: The task doesn't say what its head reads.
    """
    axes = {f"encoder.{name}": axis for name, axis in model.encoder.axes().items()}
    head = config.make_task().head_axes(model.encoder.stack.spaces()[-1])
    return axes | {f"head.{name}": axis for name, axis in head.items()}


def widths_of(model: SequenceModel, config: ModelConfig) -> dict[str, int]:
    """Return how many units each space of a model has."""
    made = {space: config.encoder.hidden_size for spaces in model.encoder.stack.spaces() for space in spaces}
    return made | {EMBEDDING: config.encoder.embedding_size}


def grow(config: ModelConfig, weights: Weights, larger: ModelConfig, seed: int) -> Weights:
    """Return weights of a larger model that computes the same.

    Args:
        config: Of the old model.
        weights: Of the old model.
        larger: Of the new model: more units, a longer embedding, a backward direction beside the forward one.
        seed: Draws the new units.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = larger.build()
        old = config.build()
    axes, before, after = axes_of(model, larger), widths_of(old, config), widths_of(model, larger)
    return {
        name: _grown(weights.get(name), fresh, axes[name], before, after) for name, fresh in weights_of(model).items()
    }


def _grown(old: Tensor | None, fresh: Tensor, axes: Sequence[Axis], before: Widths, after: Widths) -> Tensor:
    if old is None:  # a new direction's
        return fresh
    made_new = read_new = torch.zeros((), dtype=torch.bool)
    for place, axis in enumerate(axes):
        if axis.spaces:
            new = torch.cat([torch.arange(after[space]) >= before.get(space, 0) for space in axis.spaces])
            new = new.view(-1, *[1] * (fresh.ndim - 1 - place))
            made_new, read_new = (made_new, read_new | new) if axis.reads else (made_new | new, read_new)
    grown = torch.where(read_new & ~made_new, 0.0, fresh)
    kept = (~(read_new | made_new)).expand_as(grown)
    grown[kept] = old.flatten()
    return grown


def keep_units(weights: Weights, axes: Axes, widths: Widths, kept: Mapping[str, Tensor]) -> Weights:
    """Return the weights without the units that aren't kept.

    Args:
        weights: Of a model.
        axes: Of its parameters.
        widths: Units of each space.
        kept: The units that stay, for each space that loses some.
    """
    smaller = dict(weights)
    for name, of_name in axes.items():
        for place, axis in enumerate(of_name):
            if axis.spaces:
                smaller[name] = smaller[name].index_select(place, _places(axis, widths, kept))
    return smaller


def _places(axis: Axis, widths: Widths, kept: Mapping[str, Tensor]) -> Tensor:
    """Return where the units that stay lie along an axis."""
    places, start = [], 0
    for space in axis.spaces:
        places.append(start + kept.get(space, torch.arange(widths[space])))
        start += widths[space]
    return torch.cat(places)


def readers_norms(weights: Weights, axes: Axes, widths: Widths) -> dict[str, Tensor]:
    """Return for each unit of each space the L2 norm of all weights that read it."""
    squares = {space: torch.zeros(width) for space, width in widths.items()}
    for name, value in weights.items():
        for place, axis in enumerate(axes[name]):
            if axis.reads:
                column = value.square().movedim(place, 0).reshape(value.shape[place], -1).sum(1)
                parts = torch.split(column, [widths[space] for space in axis.spaces])
                for space, part in zip(axis.spaces, parts, strict=True):
                    squares[space] += part
    return {space: value.sqrt() for space, value in squares.items()}
