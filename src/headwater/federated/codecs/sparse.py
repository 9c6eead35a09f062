"""A few numbers of each tensor in place of all.

Shapes: N numbers, K of them kept, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from torch import Tensor

from headwater.federated.codecs.base import Codec, Reader, Writer
from headwater.federated.codecs.packing import read_places, write_places


@dataclass(frozen=True)
class TopK(Codec):
    """The numbers of largest magnitude and their places, zeros elsewhere (Aji and Heafield 2017, arXiv:1704.05021).

    What is left out is left out again and again: give it error feedback.

    Attributes:
        keep: Share of each tensor's numbers, of which one is kept at least.
    """

    keep: float = 0.01

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write the numbers and their places."""
        x_N = value.reshape(-1)
        places_K = x_N.abs().topk(kept(self.keep, len(x_N)), sorted=False).indices.sort().values
        write_places(write, places_K, len(x_N))
        write.numbers("values", x_N[places_K])

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the numbers at their places."""
        count = prod(shape)
        places_K, wanted = read_places(read, count), kept(self.keep, count)
        if len(places_K) != wanted:
            raise ValueError(f"{read.name!r} has {len(places_K)} places, where {wanted} are kept")
        return _spread(read.numbers("values", (wanted,)), places_K, shape)


@dataclass(frozen=True)
class RandomK(Codec):
    """Numbers at places that are drawn, so that both ends know them (Konečný et al. 2016, arXiv:1610.05492).

    Attributes:
        keep: Share of each tensor's numbers, of which one is kept at least.
        error_feedback: Without it the numbers are scaled up, which makes each right on average; with it what is left
            out comes later.
    """

    keep: float = 0.01
    error_feedback: bool = False

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write the numbers."""
        x_N = value.reshape(-1)
        places_K = self._places(len(x_N), write.draw())
        scale = 1.0 if self.error_feedback else len(x_N) / len(places_K)
        # What isn't finite must not come out finite, wherever it stands.
        write.numbers("values", x_N[places_K] * scale if bool(x_N.isfinite().all()) else x_N[places_K] * torch.nan)

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the numbers at their places."""
        places_K = self._places(prod(shape), read.draw())
        return _spread(read.numbers("values", (len(places_K),)), places_K, shape)

    def _places(self, count: int, draw: np.random.Generator) -> Tensor:
        return torch.from_numpy(draw.choice(count, kept(self.keep, count), replace=False, shuffle=False))


class SparseRows(Codec):
    """The rows that aren't all zero, such as those of the tokens that a client has; nothing is lost."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Matrices."""
        return len(shape) >= 2

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write the rows and their places."""
        places_R = (value != 0).view(len(value), -1).any(1).nonzero().squeeze(1)
        write_places(write, places_R, len(value))
        write.numbers("rows", value[places_R])

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the rows at their places."""
        places_R = read_places(read, shape[0])
        value = torch.zeros(tuple(shape))
        value[places_R] = read.numbers("rows", (len(places_R), *shape[1:]))
        return value


def kept(keep: float, count: int) -> int:
    """Return how many of some numbers are kept."""
    return max(1, ceil(keep * count))


def _spread(values_K: Tensor, places_K: Tensor, shape: Sequence[int]) -> Tensor:
    x_N = torch.zeros(prod(shape))
    x_N[places_K] = values_K
    return x_N.view(tuple(shape))
