"""Low-rank adapters on recurrent and embedding matrices (LoRA, Hu et al. 2021, arXiv:2106.09685).

Shapes: O rows and I columns of a weight, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from headwater.errors import ConfigError


class LowRank(nn.Module):
    """A weight plus alpha / R times the product of two thin matrices, B (O, R) and A (R, I).

    Section 4.1: A is drawn, B is zero, so that a model starts as it was.
    """

    def __init__(self, weight_OI: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight_OI.shape
        self.scale = alpha / rank
        self.lora_A = nn.Parameter(weight_OI.new_empty(rank, columns))
        self.lora_B = nn.Parameter(weight_OI.new_zeros(rows, rank))
        nn.init.normal_(self.lora_A, std=columns**-0.5)

    def forward(self, weight_OI: Tensor) -> Tensor:
        """Return the weight that the layer computes with, in the weight's own type."""
        with torch.autocast(weight_OI.device.type, enabled=False):
            return torch.addmm(weight_OI, self.lora_B, self.lora_A, alpha=self.scale)


@contextmanager
def low_rank(encoder: nn.Module, targets: Sequence[str], rank: int, alpha: float) -> Iterator[list[str]]:
    """Adapt matrices of an encoder as long as the context lasts, then merge the adapters into ordinary weights.

    Whatever reads a weight, layers and kernels alike, gets the adapted one.

    Args:
        encoder: Changed in place.
        targets: Parts of the matrices' names between dots, such as ``weight_hh`` or ``layers.0``.
        rank: R.
        alpha: The product counts alpha / R.

    Yields:
        How the names of the adapters' parameters within the encoder begin.

    Raises:
        ConfigError: A target names no matrix, or the rank is higher than a matrix has.
    """
    chosen = _matrices(encoder, targets, rank)
    places = [(encoder.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in chosen]
    for module, name in places:
        parametrize.register_parametrization(module, name, LowRank(getattr(module, name).detach(), rank, alpha))
    try:
        yield ["{}.parametrizations.{}.0.".format(*name.rsplit(".", 1)) for name in chosen]
    finally:
        for module, name in places:
            parametrize.remove_parametrizations(module, name)


def _matrices(encoder: nn.Module, targets: Sequence[str], rank: int) -> list[str]:
    shapes = {name: tuple(value.shape) for name, value in encoder.named_parameters() if value.ndim == 2}
    for target in targets:
        if not any(_names(target, name) for name in shapes):
            raise ConfigError(f"lora_targets: {target!r} names no matrix; there are: {', '.join(shapes)}")
    chosen = [name for name in shapes if any(_names(target, name) for target in targets)]
    for name in chosen:
        if rank > min(shapes[name]):
            raise ConfigError(
                f"rank = {rank}: {name} is {' x '.join(map(str, shapes[name]))}, so a rank above {min(shapes[name])} "
                "saves nothing: lower --rank, or leave it out of --lora-targets"
            )
    return chosen


def _names(target: str, name: str) -> bool:
    return f".{target}." in f".{name}."
