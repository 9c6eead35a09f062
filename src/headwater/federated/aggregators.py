"""Aggregators: many updates to one direction. Updates come in the order of the clients' names.

Float addition is not associative; with one order, a simulation and a deployment give the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from headwater.federated.protocols import Update
from headwater.weights import Weights


class Mean:
    """Every client counts alike; a running sum, so memory doesn't grow with the clients."""

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        return _weighted(((update, 1.0) for update in updates), like)


class WeightedMean:
    """A client counts by its rows: FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        return _weighted(((update, float(update.rows)) for update in updates), like)


class Median:
    """The median of each number over the clients (Yin et al. 2018, arXiv:1803.01498); holds against a minority."""

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates; an even number of clients gives the mean of the two in the middle."""
        deltas = [update.delta for update in updates]
        if not deltas:
            return _zeros(like)
        return {name: _median(torch.stack([delta[name] for delta in deltas])) for name in like}


@dataclass(frozen=True)
class FixedMean:
    """The sum over a fixed number, which no client can change by taking part or not: what privacy needs.

    Attributes:
        expected: Clients expected in a round: the population times the sampling rate.
    """

    expected: float

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        total = _zeros(like)
        for update in updates:
            for name, value in update.delta.items():
                total[name].add_(value, alpha=1 / self.expected)
        return total


def _weighted(pairs: Iterable[tuple[Update, float]], like: Weights) -> Weights:
    total, weight_sum = _zeros(like), 0.0
    for update, weight in pairs:
        weight_sum += weight
        for name, value in update.delta.items():
            total[name].add_(value, alpha=weight)
    for value in total.values():
        value.div_(weight_sum or 1.0)
    return total


def _median(stacked: torch.Tensor) -> torch.Tensor:
    ordered = stacked.sort(0).values
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _zeros(like: Weights) -> Weights:
    return {name: torch.zeros_like(value) for name, value in like.items()}
