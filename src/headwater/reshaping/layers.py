"""Layers put in and taken out.

Shapes: N valid steps or rows, F features that a layer or head reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from torch import Tensor

from headwater.axes import Axis
from headwater.cells.stack import Layer, reversal_index
from headwater.checkpoint import ModelConfig
from headwater.data.batches import Batch
from headwater.errors import ConfigError
from headwater.model import SequenceModel
from headwater.reshaping.widths import axes_of
from headwater.tasks.classification import PooledLinear
from headwater.weights import Weights, load_weights, weights_of

_LAYER = re.compile(r"encoder\.stack\.layers\.(\d+)\.")
_RIDGE = 1e-6
"""Added to the normal equations' diagonal, times its mean: units that say the same would leave the fit undecided."""


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
    deeper = _with_layers(config, layers + 1, residual)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = weights_of(deeper.build())
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
    if number + 1 in config.residual_layers and number not in config.residual_layers:
        raise ConfigError(f"layer {number + 2} adds to layer {number + 1}: drop layer {number + 2} first")
    shallower = _with_layers(config, layers - 1, {n - (n > number) for n in config.residual_layers if n != number})
    model = config.build()
    load_weights(model, weights)
    outputs = layer_outputs(model, batch)
    top = number + 1 == layers
    was, now = (_read(model, batch, outputs[place], by_head=top) for place in (number + 1, number))
    weight_FF, bias_F = _fit(now, was)
    repaired = dict(weights)
    for name in _readers(config, model, number + 1):
        bias = name.replace("weight", "bias")
        repaired[bias] = weights[bias] + weights[name] @ bias_F
        repaired[name] = weights[name] @ weight_FF
    kept = {name: value for name, value in repaired.items() if not name.startswith(f"encoder.stack.layers.{number}.")}
    return shallower, _renumbered(kept, lambda layer: layer - (layer > number))


@torch.inference_mode()
def layer_outputs(model: SequenceModel, batch: Batch) -> list[Tensor]:
    """Return the embedded tokens (B, T, E), then each layer's outputs (B, T, R*H)."""
    model.eval()
    stack = model.encoder.stack
    x_BTD = model.encoder.embed(batch.tokens_BT)
    reversal_BT = reversal_index(batch.lengths_B, x_BTD) if stack.bidirectional else None
    outputs = [x_BTD]
    for layer in stack.layers:
        assert isinstance(layer, Layer)  # noqa: S101 - what the stack has put there
        y_BTF, _ = layer(x_BTD, batch.lengths_B, reversal_BT, {})
        x_BTD = layer.joined(x_BTD, y_BTF)
        outputs.append(x_BTD)
    return outputs


def head_reads(model: SequenceModel, batch: Batch, y_BTF: Tensor) -> Tensor:
    """Return what the head's weights read of states, (N, F): pooled rows, or all valid steps."""
    if isinstance(model.head, PooledLinear):
        return model.head.pooled(y_BTF, batch.lengths_B)
    return valid_steps(batch, y_BTF)


def valid_steps(batch: Batch, y_BTF: Tensor) -> Tensor:
    """Return the features of all valid steps, (N, F)."""
    steps_T = torch.arange(y_BTF.shape[1])
    return y_BTF[steps_T < batch.lengths_B.unsqueeze(1)]


def _read(model: SequenceModel, batch: Batch, y_BTF: Tensor, *, by_head: bool) -> Tensor:
    return head_reads(model, batch, y_BTF) if by_head else valid_steps(batch, y_BTF)


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
    """Return the weights (F', F) and bias (F',) of the ridge regression of F' features on F."""
    now, was = now_NF.double(), was_NF.double()
    now_mean, was_mean = now.mean(0), was.mean(0)
    centred = now - now_mean
    gram = centred.T @ centred
    gram += _RIDGE * (gram.diagonal().mean() + 1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (was - was_mean)).T
    return weight.float(), (was_mean - weight @ now_mean).float()


def _with_layers(config: ModelConfig, layers: int, residual: set[int]) -> ModelConfig:
    encoder = config.encoder.model_copy(update={"layers": layers})
    return config.model_copy(update={"encoder": encoder, "residual_layers": tuple(sorted(residual))})


def _renumbered(weights: Weights, number: Callable[[int], int]) -> Weights:
    return {
        _LAYER.sub(lambda found: f"encoder.stack.layers.{number(int(found[1]))}.", name): value
        for name, value in weights.items()
    }
