"""Aggregators that look at each number by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.federated.protocols import Update
from headwater.weights import Weights, zeros_like


@dataclass(frozen=True)
class Median:
    """The median of each number over the clients (Yin et al. 2018, arXiv:1803.01498, definition 1).

    Holds against a minority.
    """

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates; an even number of clients gives the mean of the two in the middle."""
        deltas = [update.delta for update in updates]
        if not deltas:
            return zeros_like(like)
        return {name: median(torch.stack([delta[name] for delta in deltas])) for name in like}


@dataclass(frozen=True)
class TrimmedMean:
    """The mean of each number without its largest and its smallest values (Yin et al. 2018, definition 2).

    Attributes:
        trim: The paper's beta: share of the clients, rounded down, that is left out at each end; below one half. Holds
            against as many. One client at least is left.
    """

    trim: float = 0.2

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        deltas = [update.delta for update in updates]
        if not deltas:
            return zeros_like(like)
        cut = self.taken(len(deltas))
        kept = slice(cut, len(deltas) - cut)
        return {name: torch.stack([delta[name] for delta in deltas]).sort(0).values[kept].mean(0) for name in like}

    def taken(self, clients: int) -> int:
        """Return how many of a round's clients are left out at each end."""
        return min(share_of(self.trim, clients), (clients - 1) // 2)


def median(values: Tensor) -> Tensor:
    """Return the median over the first axis."""
    ordered = values.sort(0).values
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def share_of(share: float, clients: int) -> int:
    """Return a share of the clients, rounded down."""
    return math.floor(share * clients + 1e-9)  # 0.29 * 100 is a little less than 29
