"""Layers put in and taken out.

Shapes: N valid steps or rows, F features that a layer or head reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from headwater.axes import Axis
from headwater.checkpoint import ModelConfig
from headwater.data.batches import Batch
from headwater.errors import ConfigError
from headwater.model import SequenceModel
from headwater.reshaping.reading import head_reads, run_layers, valid_steps
from headwater.reshaping.widths import axes_of, built
from headwater.weights import Weights, weights_of

_LAYER = re.compile(r"encoder\.stack\.layers\.(\d+)\.")
_STRENGTHS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the ridge: what is added to the normal equations' diagonal, over its mean."""


def insert_layer(config: ModelConfig, weights: Weights, number: int, seed: int) -> tuple[ModelConfig, Weights]:
    """Put in a layer that passes on what it reads, and learns from there on; see `headwater.cells.stack.Layer`.

    Args:
        config: Of the model.
        weights: Of the model.
        number: What the new layer's number will be, from 1 (above the first) to the layers there are (on top).
        seed: Draws the new layer.

    Returns:
        The config and weights of a model that computes the same.

    Raises:
        ConfigError: A layer can't stand there.
    """
    layers = config.encoder.layers
    if not 1 <= number <= layers:
        raise ConfigError(f"a layer can be inserted above layers 1 to {layers}, not above layer {number}")
    residual = {layer + (layer >= number) for layer in config.residual_layers} | {number}
    adapters = {layer + (layer >= number): units for layer, units in config.adapters.items()}
    deeper = _with_layers(config, layers + 1, residual, adapters)
    fresh = weights_of(built(deeper, seed=seed))
    renamed = _renumbered(weights, lambda layer: layer + (layer >= number))
    return deeper, {name: renamed.get(name, value) for name, value in fresh.items()}


def drop_layer(config: ModelConfig, weights: Weights, number: int, batch: Batch) -> tuple[ModelConfig, Weights]:
    """Take a layer out; whatever read it now reads the layer below, through the map that fits it best.

    The map is the ridge regression of what was read on what is read now, over the batch; it is multiplied into the
    readers' weights.

    Args:
        config: Of the model.
        weights: Of the model.
        number: The layer, from 0.
        batch: Rows to fit on.

    Returns:
        The config and weights of the smaller model.

    Raises:
        ConfigError: There is no such layer, it is the only one, or the layer above adds to it.
    """
    layers = config.encoder.layers
    if not 0 <= number < layers or layers == 1:
        raise ConfigError(f"layer {number + 1} can't be dropped: the model has {layers}, and needs one at least")
    if number + 1 in config.residual_layers:  # its sum is read by others too
        raise ConfigError(f"layer {number + 2} adds to layer {number + 1}: drop layer {number + 2} first")
    residual = {layer - (layer > number) for layer in config.residual_layers if layer != number}
    adapters = {layer - (layer > number): units for layer, units in config.adapters.items() if layer != number}
    shallower = _with_layers(config, layers - 1, residual, adapters)
    model = built(config, weights)
    embedded, passes = run_layers(model, batch)
    outputs = [embedded, *(layer.passed_BTF for layer in passes)]
    was, now = (
        head_reads(model, batch, outputs[place]) if number + 1 == layers else valid_steps(batch, outputs[place])
        for place in (number + 1, number)
    )
    weight_FF, bias_F = _fit(now, was)
    repaired = dict(weights)
    for name in _readers(config, model, number + 1):
        bias = name.replace("weight", "bias")
        repaired[bias] = weights[bias] + weights[name] @ bias_F
        repaired[name] = weights[name] @ weight_FF
    kept = {name: value for name, value in repaired.items() if not name.startswith(f"encoder.stack.layers.{number}.")}
    return shallower, _renumbered(kept, lambda layer: layer - (layer > number))


def _readers(config: ModelConfig, model: SequenceModel, number: int) -> list[str]:
    """Return the weights that read the layer below a number: the layer's of that number, or the head's."""
    if number < config.encoder.layers:
        sides = ("fwd", "bwd") if config.encoder.bidirectional else ("fwd",)
        return [f"encoder.stack.layers.{number}.{side}.weight_ih" for side in sides]
    states = set(model.encoder.stack.spaces()[-1])

    def reads_states(axis: Axis) -> bool:
        return axis.reads and bool(states & set(axis.spaces))

    axes = axes_of(model, config)
    return [name for name, axis in axes.items() if name.startswith("head.") and any(map(reads_states, axis))]


def _fit(now_NF: Tensor, was_NF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights (F', F) and bias (F',) of the ridge regression of F' features on F.

    Its strength is that which predicts the last fifth from the others best: with few rows and many features the plain
    least squares would fit the rows and nothing else.
    """
    now, was = now_NF.double(), was_NF.double()
    some = max(1, len(now) * 4 // 5)

    def miss(strength: float) -> float:
        weight, bias = _ridge(now[:some], was[:some], strength)
        return float((now[some:] @ weight.T + bias - was[some:]).square().sum())

    weight, bias = _ridge(now, was, min(_STRENGTHS, key=miss))
    return weight.float(), bias.float()


def _ridge(now_NF: Tensor, was_NF: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    now_mean, was_mean = now_NF.mean(0), was_NF.mean(0)
    centred = now_NF - now_mean
    gram = centred.T @ centred
    gram += strength * (gram.diagonal().mean() + 1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (was_NF - was_mean)).T
    return weight, was_mean - weight @ now_mean


def _with_layers(config: ModelConfig, layers: int, residual: set[int], adapters: dict[int, int]) -> ModelConfig:
    encoder = config.encoder.model_copy(update={"layers": layers})
    changes = {"encoder": encoder, "residual_layers": tuple(sorted(residual)), "adapters": adapters}
    return config.model_copy(update=changes)


def _renumbered(weights: Weights, number: Callable[[int], int]) -> Weights:
    return {
        _LAYER.sub(lambda found: f"encoder.stack.layers.{number(int(found[1]))}.", name): value
        for name, value in weights.items()
    }
