"""Who takes part in a round: a pure function of the seed and the round.

A sampler draws places in the sorted sequence of the clients, lazily, and takes the first that are available: its time
grows with the round's clients, and with the population by one pass over an array at most. Shapes: C clients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated

import numpy as np
from pydantic import Field

from headwater.config import Config
from headwater.federated import SAMPLERS
from headwater.federated.protocols import ClientId
from headwater.registry import name_in

Available = Callable[[float, ClientId], bool]
"""Whether a client can be asked at a moment; rounds are counted from 1, the moments of a round by its number."""


class SamplingOptions(Config):
    """Who takes part in a round."""

    sampler: Annotated[str, name_in("headwater.samplers", SAMPLERS)] = "uniform"
    """How a round's clients are drawn: `uniform`, `weighted` (by their rows; goes with `--aggregator mean`), `poisson`
    (each on its own with the same chance, as with `--epsilon`), or `round_robin` (in an order drawn once)."""
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Share of the clients that take part in a round; at least two do, if there are two."""
    cohort: Annotated[int, Field(ge=0)] = 0
    """How many clients take part in a round, in place of `--participation`; 0 goes by that."""
    over_select: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    """Share of clients that are asked beyond those wanted: a round closes when as many as are wanted have answered."""

    def unread(self) -> dict[str, str]:
        """A number takes the place of a share; where each client is drawn on its own no number is wanted."""
        unread = super().unread() | ({"participation": "without --cohort"} if self.cohort else {})
        return unread | ({"over_select": "without --sampler poisson"} if self.sampler == "poisson" else {})


def wanted(participation: float, cohort: int, population: int) -> int:
    """Return how many clients a round wants."""
    return min(cohort, population) or max(min(2, population), round(participation * population))


def always(moment: float, client: ClientId) -> bool:
    """Return that a client is available."""
    del moment, client
    return True


@dataclass(frozen=True, eq=False)
class Draws(ABC):
    """A sampler that draws one client after the other, without repetition.

    Attributes:
        participation: Share of the clients that a round wants; at least two, where there are two.
        seed: Of the run.
        cohort: How many it wants, in place of a share.
        over_select: Share of clients that are asked beyond those.
        available: Who can be asked; the next in the draw takes the place of one who can't.
    """

    participation: float
    seed: int
    cohort: int = 0
    over_select: float = 0.0
    available: Available = always

    def sample(self, round_number: int, clients: Sequence[ClientId]) -> list[ClientId]:
        """Return the round's clients, in the order of `clients`."""
        count = wanted(self.participation, self.cohort, len(clients))
        # Rounded first: 10 times 1.1 is a little more than 11.
        count = min(len(clients), int(np.ceil(round(count * (1 + self.over_select), 9))))
        return [clients[place] for place in sorted(self.draw(round_number, clients, count, round_number))]

    def draw(
        self, number: int, clients: Sequence[ClientId], count: int, moment: float, busy: Container[int] = ()
    ) -> list[int]:
        """Return the places of up to `count` clients, as drawn.

        Args:
            number: Of the draw; each has an order of its own.
            clients: All, in sorted order.
            count: How many, if there are as many.
            moment: When they are to be available.
            busy: Places of those who can't be asked.
        """
        drawn: dict[int, None] = {}
        for place in map(int, self.places(number, len(clients), count)):
            if place not in busy and self.available(moment, clients[place]):
                drawn[place] = None
            if len(drawn) == count:  # before the next place is made, which may be the first of a long row
                break
        return list(drawn)

    @abstractmethod
    def places(self, number: int, population: int, count: int) -> Iterable[int]:
        """Yield all places in the order of a draw, of which mostly no more than the first `count` are wanted.

        A place may come twice; the first time counts.
        """


class Uniform(Draws):
    """Everybody has the same chance."""

    def places(self, number: int, population: int, count: int) -> Iterable[int]:
        """Yield places at random."""
        rng = np.random.default_rng([self.seed, number])
        yield from rng.choice(population, count, replace=False)
        yield from rng.permutation(population)


@dataclass(frozen=True, eq=False)
class Weighted(Draws):
    """Drawn one after the other, each time with chances by their rows.

    Attributes:
        rows_C: Training rows of each client, in the order of the clients.
    """

    rows_C: np.ndarray = field(kw_only=True)

    @cached_property
    def _bounds(self) -> np.ndarray:
        return np.cumsum(self.rows_C)

    def places(self, number: int, population: int, count: int) -> Iterable[int]:
        """Yield the places of rows at random, of which one that comes again is passed over.

        The rest, if so many are wanted, comes as exponential clocks of the clients' rates ring: in the same
        distribution (Efraimidis and Spirakis 2006), but in the time of the whole population.
        """
        rng = np.random.default_rng([self.seed, number])
        rows = rng.integers(self._bounds[-1], size=2 * count)
        yield from np.searchsorted(self._bounds, rows, side="right")
        yield from np.argsort(rng.exponential(size=population) / self.rows_C)


class RoundRobin(Draws):
    """In an order that is drawn once: everybody before anybody for the second time, where all are available."""

    def places(self, number: int, population: int, count: int) -> Iterable[int]:
        """Yield the places whose turn it is, and then those that come next."""
        order_C = _order(self.seed, population)
        begin = (number - 1) * count % population
        yield from order_C[begin:]
        yield from order_C[:begin]


@lru_cache(maxsize=1)
def _order(seed: int, population: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(population)


@dataclass(frozen=True)
class Poisson:
    """Each client on its own with the same chance: what the privacy accountant assumes. May be nobody.

    Attributes:
        participation: The chance.
        seed: Of the run.
        cohort: How many clients a round wants on average, in place of a chance.
        available: Who can be asked.
    """

    participation: float
    seed: int
    cohort: int = 0
    available: Available = always

    def sample(self, round_number: int, clients: Sequence[ClientId]) -> list[ClientId]:
        """Return the round's clients, in the order of `clients`."""
        rate = self.cohort / len(clients) if self.cohort else self.participation
        draws_C = np.random.default_rng([self.seed, round_number]).random(len(clients))
        drawn = (clients[place] for place in np.flatnonzero(draws_C < rate).tolist())
        return [client for client in drawn if self.available(round_number, client)]
