"""Weights as named tensors: what is sent, averaged, quantized and saved.

`Weights` never holds buffers or optimizer state, only a model's parameters by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]


def weights_of(model: nn.Module) -> Weights:
    """Return a copy of the model's parameters, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights into the model's parameters of the same names; names must exist and shapes agree."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        parameters[name].copy_(value)


def add_scaled(a: Mapping[str, Tensor], b: Mapping[str, Tensor], scale: float = 1.0) -> Weights:
    """Return a + scale * b; names that b lacks stay as they are."""
    return {name: torch.add(value, b[name], alpha=scale) if name in b else value for name, value in a.items()}


def zeros_like(weights: Mapping[str, Tensor]) -> Weights:
    """Return zero weights of the same names, shapes and types."""
    return {name: torch.zeros_like(value) for name, value in weights.items()}


def add_to(total: Mapping[str, Tensor], weights: Mapping[str, Tensor], scale: float) -> None:
    """Add the scaled weights to the total, in place."""
    for name, value in weights.items():
        total[name].add_(value, alpha=scale)


def l2_norm(weights: Mapping[str, Tensor]) -> float:
    """Return the L2 norm over all the numbers, summed in float64; the order of the names changes no bit."""
    return math.sqrt(math.fsum(float(value.double().square().sum()) for value in weights.values()))


def clipped(weights: Mapping[str, Tensor], most: float) -> Weights:
    """Return the weights scaled down to the L2 norm `most`, if theirs is larger."""
    scale = min(1.0, most / max(l2_norm(weights), 1e-12))
    return {name: value * scale for name, value in weights.items()}


def part(weights: Mapping[str, Tensor], prefix: str) -> Weights:
    """Return the weights under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
