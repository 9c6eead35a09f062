"""Transfer by bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751)."""

from __future__ import annotations

from dataclasses import replace

import torch

from headwater.checkpoint import ModelConfig
from headwater.errors import ConfigError
from headwater.trainer import NEVER, FitResult, ParameterGroup
from headwater.transfer_learning.job import Job
from headwater.weights import load_weights, weights_of


def adapters(job: Job) -> FitResult:
    """Put bottlenecks behind recurrent layers: they and the head learn, the rest stays frozen.

    A bottleneck isn't linear, so that it can't be merged into the weights: it stays in the model, its parameters named
    ``encoder.stack.layers.N.adapter.*``. The source's own adapters go on learning behind the layers that are asked for.

    Raises:
        ConfigError: There is no such layer, or it has an adapter of another size.
    """
    options, weights = job.options, weights_of(job.model)
    chosen = _numbers(options.adapter_layers, job.config.encoder.layers)
    job.config = _with_adapters(job.config, chosen, options.bottleneck)
    torch.manual_seed(options.seed)
    job.model = job.config.build()
    load_weights(job.model, weights)
    learning = ("head.", *job.new_layers(), *(f"encoder.stack.layers.{number}.adapter." for number in chosen))
    result = job.fit([ParameterGroup(learning), ParameterGroup(("",), epochs=NEVER)])
    sizes = {name: value.numel() for name, value in job.model.named_parameters()}
    trained = sum(size for name, size in sizes.items() if name.startswith(learning))
    parts = f"{len(chosen)} adapter{'s' * (len(chosen) > 1)} and the head"
    note = f"{trained:,} weights were trained, of a model of {sum(sizes.values()):,}: {parts}."
    return replace(result, notes=(*result.notes, note))


def _numbers(asked: str, layers: int) -> list[int]:
    """Return the numbers, from 0, of the layers that are asked for."""
    known = {str(number + 1): number for number in range(layers)}
    names = list(known) if asked == "all" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in known:
            raise ConfigError(f"adapter_layers: {name!r} is no layer's number; there are: {', '.join(known)}, or all")
    return sorted({known[name] for name in names})


def _with_adapters(config: ModelConfig, chosen: list[int], units: int) -> ModelConfig:
    for number in chosen:
        there = config.adapters.get(number, units)
        if there != units:
            raise ConfigError(
                f"bottleneck = {units}: behind layer {number + 1} the source has an adapter of {there} units: give "
                f"--bottleneck {there} to go on with it, or leave the layer out of --adapter-layers"
            )
    sizes = config.adapters | dict.fromkeys(chosen, units)
    return config.model_copy(update={"adapters": dict(sorted(sizes.items()))})
