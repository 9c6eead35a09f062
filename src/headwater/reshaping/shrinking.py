"""Fewer units: those that matter most stay.

Shapes: N valid steps or rows, F features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headwater.axes import EMBEDDING, Axis
from headwater.checkpoint import ModelConfig
from headwater.data.batches import Batch
from headwater.model import SequenceModel
from headwater.reshaping.layers import head_reads, layer_outputs, valid_steps
from headwater.reshaping.widths import axes_of, keep_units, readers_norms, widths_of
from headwater.weights import Weights, load_weights


def shrink(config: ModelConfig, weights: Weights, smaller: ModelConfig, batch: Batch) -> Weights:
    """Return weights of a smaller model: of each space, the units that matter most.

    A unit matters by the norm of the weights that read it, times the standard deviation of what it says over the
    batch. What the others say on average is added to their readers' biases.

    Args:
        config: Of the model.
        weights: Of the model.
        smaller: Of the new one: fewer units, or a shorter embedding.
        batch: Rows to measure on.
    """
    model = config.build()
    load_weights(model, weights)
    axes, widths = axes_of(model, config), widths_of(model, config)
    wanted = widths_of(smaller.build(), smaller)
    outputs = layer_outputs(model, batch)
    said = _said(model, batch, outputs)
    norms = readers_norms(weights, axes, widths)
    kept = {
        space: (norms[space] * said[space].std(0)).topk(wanted[space]).indices.sort().values
        for space in widths
        if wanted[space] < widths[space]
    }
    means = {space: value.mean(0) for space, value in said.items()}
    pooled_F = head_reads(model, batch, outputs[-1]).mean(0)
    repaired = dict(weights)
    for name, axis in axes.items():
        bias = name.replace("weight", "bias")
        if bias != name and bias in weights and axis[-1].reads:
            mean_F = pooled_F if name.startswith("head.") else torch.cat([means[space] for space in axis[-1].spaces])
            repaired[bias] = weights[bias] + weights[name] @ (mean_F * _lost(axis[-1], widths, kept))
    return keep_units(repaired, axes, widths, kept)


def _said(model: SequenceModel, batch: Batch, outputs: list[Tensor]) -> dict[str, Tensor]:
    """Return what the units of each space say, (N, H); of layers that add up, the topmost one's."""
    said = {EMBEDDING: valid_steps(batch, outputs[0])}
    for spaces, y_BTF in zip(model.encoder.stack.spaces(), outputs[1:], strict=True):
        said |= dict(zip(spaces, valid_steps(batch, y_BTF).chunk(len(spaces), 1), strict=True))
    return said


def _lost(axis: Axis, widths: dict[str, int], kept: dict[str, Tensor]) -> Tensor:
    """Return 1 where an axis holds a unit that goes, else 0."""
    parts = []
    for space in axis.spaces:
        part = torch.full((widths[space],), float(space in kept))
        if space in kept:
            part[kept[space]] = 0.0
        parts.append(part)
    return torch.cat(parts)
