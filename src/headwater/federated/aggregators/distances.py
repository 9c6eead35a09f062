"""Aggregators that go by the distances between whole updates.

Shapes: C clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from headwater.federated.aggregators.coordinates import median, share_of
from headwater.federated.protocols import Update
from headwater.weights import Weights, add_to, zeros_like

_ITERATIONS = 200
"""Far more than it takes where updates are of like size; each costs no more than C * C products."""


@dataclass(frozen=True)
class GeometricMedian:
    """The point with the least sum of distances to the updates: RFA (Pillutla et al. 2022, arXiv:1912.13445).

    Found by the smoothed Weiszfeld algorithm (algorithm 2), beginning from the mean. The point is a weighted mean of
    the updates, so the iterations need their scalar products only. Holds against a minority.

    Attributes:
        smoothing: The paper's nu: smaller distances count like this one.
    """

    smoothing: float = 1e-6

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        deltas = [update.delta for update in updates]
        if not deltas:
            return zeros_like(like)
        gram_CC = _products(deltas, like)
        weights_C = torch.full((len(deltas),), 1 / len(deltas), dtype=torch.float64)
        for _ in range(_ITERATIONS):
            products_C = gram_CC @ weights_C
            squares_C = gram_CC.diagonal() - 2 * products_C + weights_C @ products_C
            weights_C = 1 / squares_C.clamp_min(0).sqrt().clamp_min(self.smoothing)
            weights_C = weights_C / weights_C.sum()
        return _combined(deltas, weights_C.tolist(), like)


@dataclass(frozen=True)
class Guarded:
    """What takes some clients for hostile.

    Attributes:
        hostile: Share of a round's clients, rounded down; no more than the method's proof allows.
    """

    hostile: float = 0.2

    per_hostile: ClassVar[int]
    """How many clients a hostile one takes: f of n are allowed where n >= this * f + 3."""

    def taken(self, clients: int) -> int:
        """Return how many of so many clients are taken for hostile: f."""
        return max(0, min(share_of(self.hostile, clients), (clients - 3) // self.per_hostile))


@dataclass(frozen=True)
class Krum(Guarded):
    """The update that is nearest to its n - f - 2 nearest ones (Blanchard et al. 2017, arXiv:1703.02757, section 4).

    It needs n >= 2 f + 3. Of two clients neither can be told from the other; their mean is returned.
    """

    per_hostile = 2

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        deltas = [update.delta for update in updates]
        if not deltas:
            return zeros_like(like)
        hostile = self.taken(len(deltas))
        nearest = _scores(_distances(deltas, like), hostile).argsort(stable=True).tolist()
        chosen = sorted(nearest[: self.kept(len(deltas), hostile)])
        return _combined([deltas[place] for place in chosen], [1 / len(chosen)] * len(chosen), like)

    def kept(self, clients: int, hostile: int) -> int:
        """Return how many updates are averaged."""
        del hostile
        return 1 if clients > 2 else clients


@dataclass(frozen=True)
class MultiKrum(Krum):
    """The mean of the n - f updates that Krum ranks best (Blanchard et al. 2017)."""

    def kept(self, clients: int, hostile: int) -> int:
        """Return how many updates are averaged."""
        return clients - hostile


@dataclass(frozen=True)
class Bulyan(Guarded):
    """Krum chooses updates, then each number is a mean around its median (El Mhamdi et al. 2018, arXiv:1802.07927).

    Of n clients f are taken for hostile; n - 2 f are chosen, one after the other (section 4, step 1), and of each
    number the n - 4 f values nearest to their median are averaged (step 2). It needs n >= 4 f + 3.
    """

    per_hostile = 4

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates."""
        deltas = [update.delta for update in updates]
        if not deltas:
            return zeros_like(like)
        hostile = self.taken(len(deltas))
        chosen = _chosen(_distances(deltas, like), hostile)
        kept = len(chosen) - 2 * hostile
        return {name: _around_median(torch.stack([deltas[c][name] for c in chosen]), kept) for name in like}


def _chosen(distances_CC: Tensor, hostile: int) -> list[int]:
    """Return the places of n - 2 f updates, each Krum's choice among those that are left."""
    left = list(range(len(distances_CC)))
    chosen = []
    for _ in range(len(distances_CC) - 2 * hostile):
        best = int(_scores(distances_CC[left][:, left], hostile).argmin())
        chosen.append(left.pop(best))
    return sorted(chosen)


def _around_median(values: Tensor, kept: int) -> Tensor:
    """Return the mean of the values nearest to the median, over the first axis."""
    nearest = (values - median(values)).abs().argsort(dim=0, stable=True)[:kept]
    return values.gather(0, nearest).mean(0)


def _scores(distances_CC: Tensor, hostile: int) -> Tensor:
    """Return the sum of squared distances (C,) to each one's n - f - 2 nearest others, one of them at least."""
    neighbours = max(1, len(distances_CC) - hostile - 2)
    return distances_CC.sort(1).values[:, 1 : 1 + neighbours].sum(1)


def _distances(deltas: Sequence[Weights], like: Weights) -> Tensor:
    """Return squared distances (C, C); none is nearer to an update than itself."""
    gram_CC = _products(deltas, like)
    squares_C = gram_CC.diagonal()
    return (squares_C[:, None] + squares_C - 2 * gram_CC).clamp_min(0).fill_diagonal_(-1.0)


def _products(deltas: Sequence[Weights], like: Weights) -> Tensor:
    """Return scalar products (C, C) in float64; in the order of the names, which a resumed run reads in another one."""
    total_CC = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for name in sorted(like):
        values = torch.stack([delta[name].flatten() for delta in deltas]).double()
        total_CC += values @ values.T
    return total_CC


def _combined(deltas: Sequence[Weights], weights: Sequence[float], like: Weights) -> Weights:
    """Return a weighted sum."""
    total = zeros_like(like)
    for delta, weight in zip(deltas, weights, strict=True):
        add_to(total, delta, weight)
    return total
