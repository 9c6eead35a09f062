"""Averages of updates, added up as they come.

Float addition is not associative; with one order of sums, a simulation on any number of processes and a deployment
give the same bits. An average is made of `LANES` sums, which can be made side by side: the update at place n goes to
the lane n mod LANES, and the lanes are added up in their order. Where the sums are made as updates come, a refused one
has no place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from headwater.federated.protocols import Update
from headwater.weights import Weights, add_to, zeros_like

LANES = 16
"""Sums that an average is made of; more processes than this would have nothing to do."""


class _Average(ABC):
    """A weighted sum of the updates, scaled: running sums, so memory doesn't grow with the clients."""

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        lanes: list[tuple[Weights, float]] = []
        for place, update in enumerate(updates):
            weight = self.weight(update)
            if place < LANES:
                lanes.append((zeros_like(like), 0.0))
            total, weights = lanes[place % LANES]
            add_to(total, update.delta, weight)
            lanes[place % LANES] = total, weights + weight
        return self.of_lanes(lanes, like)

    def of_lanes(self, lanes: Iterable[tuple[Weights, float]], like: Weights) -> Weights:
        """Return the average from each lane's sum of weighted updates and sum of weights."""
        total, weights = zeros_like(like), 0.0
        for lane_total, lane_weights in lanes:
            add_to(total, lane_total, 1.0)
            weights += lane_weights
        return self.average(total, weights)

    @property
    def one_by_one(self) -> bool:
        """Whether a derived class has a call of its own."""
        return type(self).__call__ is not _Average.__call__

    @abstractmethod
    def weight(self, update: Update) -> float:
        """Return what an update counts."""

    def average(self, total: Weights, weights: float) -> Weights:
        """Return the average from the sum of weighted updates, changed in place, and the sum of their weights."""
        for value in total.values():
            value.div_(weights or 1.0)
        return total


class Mean(_Average):
    """Every client counts alike."""

    def weight(self, update: Update) -> float:
        """Return 1."""
        del update
        return 1.0


class WeightedMean(_Average):
    """A client counts by its rows: FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""

    def weight(self, update: Update) -> float:
        """Return the client's rows."""
        return float(update.rows)


@dataclass(frozen=True)
class FixedMean(Mean):
    """The sum over a fixed number, which no client can change by taking part or not: what privacy needs.

    Attributes:
        expected: Clients expected in a round: the population times the sampling rate.
    """

    expected: float

    def average(self, total: Weights, weights: float) -> Weights:
        """Return the sum over the expected number."""
        del weights
        return super().average(total, self.expected)
