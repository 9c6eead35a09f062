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
from headwater.cells.adapter import units_of
from headwater.cells.stack import spaces
from headwater.checkpoint import ModelConfig
from headwater.model import SequenceModel
from headwater.weights import Weights, load_weights, weights_of

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


def widths_of(config: ModelConfig) -> dict[str, int]:
    """Return how many units each space of a model has."""
    encoder = config.encoder
    made = spaces(encoder.layers, config.residual_layers, bidirectional=encoder.bidirectional)
    units = {space: encoder.hidden_size for of_layer in made for space in of_layer}
    bottlenecks = {units_of(number): width for number, width in config.adapters.items()}
    return units | bottlenecks | {EMBEDDING: encoder.embedding_size}


def built(config: ModelConfig, weights: Weights | None = None, seed: int = 0) -> SequenceModel:
    """Return a model with these weights, else drawn from the seed; the global generator stays where it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = config.build()
    load_weights(model, weights or {})
    return model.eval()


def grow(config: ModelConfig, weights: Weights, larger: ModelConfig, seed: int) -> Weights:
    """Return weights of a larger model that computes the same.

    Args:
        config: Of the old model.
        weights: Of the old model.
        larger: Of the new model: more units, a longer embedding, a backward direction beside the forward one.
        seed: Draws the new units.
    """
    model = built(larger, seed=seed)
    axes, before, after = axes_of(model, larger), widths_of(config), widths_of(larger)
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
