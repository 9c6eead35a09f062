"""Who takes part in a round: a pure function of the seed and the round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headwater.federated.protocols import ClientId


@dataclass(frozen=True)
class Uniform:
    """A fixed share of the clients, without repetition; at least two, where there are two."""

    share: float
    seed: int

    def sample(self, round_number: int, clients: Sequence[ClientId]) -> list[ClientId]:
        """Return the round's clients, in the order of `clients`."""
        count = max(min(2, len(clients)), round(self.share * len(clients)))
        chosen = np.random.default_rng([self.seed, round_number]).choice(len(clients), count, replace=False)
        return [clients[i] for i in sorted(chosen)]


@dataclass(frozen=True)
class Poisson:
    """Each client on its own with the same chance: what the privacy accountant assumes. May be nobody."""

    rate: float
    seed: int

    def sample(self, round_number: int, clients: Sequence[ClientId]) -> list[ClientId]:
        """Return the round's clients, in the order of `clients`."""
        draws = np.random.default_rng([self.seed, round_number]).random(len(clients))
        return [client for client, draw in zip(clients, draws, strict=True) if draw < self.rate]
