"""The simulated world: who is slow, who drops out, who is available when, and when the server closes a round.

Everything is a pure function of the seed, the round and the client's name. Time is counted in times of the median
client: the one of median speed and with the median number of rows takes 1 for a round.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Annotated

from pydantic import Field

from headwater.config import Config, Fraction
from headwater.federated.protocols import ClientId
from headwater.federated.simulation import Conditions, Plan

_NORMAL = NormalDist()
_GRID = 1 << 52
"""Values that a draw can have: as many as are exact, and below 1, with a half added."""


class ConditionOptions(Config):
    """The simulated world."""

    speed_spread: Annotated[float, Field(ge=0.0, le=5.0)] = 0.0
    """How unlike the clients' speeds are: the standard deviation of their logarithm. With 0 a client takes as long as
    its rows ask for; with 1 one in six is more than 2.7 times slower than the median."""
    dropout_rate: Fraction = 0.0
    """Chance of a client to drop out of a round that it was asked in."""
    awake: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of a day in which a client is available, at a time of its own; clients are drawn from those that are."""
    day: Annotated[int, Field(ge=1)] = 24
    """Rounds of a day."""
    deadline: Annotated[float, Field(ge=0.0)] = 0.0
    """When the server closes a round, in multiples of the time that the median client needs; 0 waits for all."""
    partial_work: bool = False
    """A client that the deadline is too short for does as many steps as it has time for, but one at least, instead of
    failing."""

    def unread(self) -> dict[str, str]:
        """Each has something to work on."""
        unread = super().unread() | ({} if self.deadline else {"partial_work": "with --deadline"})
        return unread | ({} if self.awake < 1 else {"day": "with --awake below 1"})


@dataclass(frozen=True)
class Outcome:
    """What becomes of a client that was asked.

    Attributes:
        time: After how long the server knows.
        work: Share of its steps that it does.
        absent: Why there is no answer; empty if there is one.
    """

    time: float
    work: float = 1.0
    absent: str = ""


@dataclass(frozen=True)
class World(Conditions):
    """Clients of unlike speed, who come and go.

    Attributes:
        options: How unlike, and how often.
        seed: Of the run.
        load: A client's work in a round over the median client's.
        wanted: A round is closed when so many have answered; 0 waits for all.
    """

    options: ConditionOptions
    seed: int
    load: Callable[[ClientId], float]
    wanted: int = 0

    def available(self, moment: float, client: ClientId) -> bool:
        """Return whether a client can be asked; each can for a round a day at least."""
        day, awake = self.options.day, self.options.awake
        wakes = day * self._draw("wakes", client) if awake < 1 else 0.0
        return awake == 1 or (moment - wakes) % day < max(1.0, awake * day)

    def slowness(self, client: ClientId) -> float:
        """Return how much longer a client takes than the median one for the same work."""
        spread = self.options.speed_spread
        return math.exp(spread * _NORMAL.inv_cdf(self._draw("speed", client))) if spread else 1.0

    def outcome(self, round_number: int, client: ClientId) -> Outcome:
        """Return what becomes of a client that was asked, as if it were the only one."""
        options = self.options
        time, deadline = self.load(client) * self.slowness(client), options.deadline or math.inf
        if options.dropout_rate and self._draw(f"dropout/{round_number}", client) < options.dropout_rate:
            return Outcome(min(time, deadline), absent="dropped out")
        if time <= deadline:
            return Outcome(time)
        if options.partial_work:
            return Outcome(deadline, work=deadline / time)
        return Outcome(
            deadline, absent=f"too slow: would have taken {time:.3g} times the median, the deadline is {deadline:g}"
        )

    def plan(self, round_number: int, clients: Sequence[ClientId]) -> Plan:
        """Return what becomes of a round's clients."""
        outcomes = {client: self.outcome(round_number, client) for client in clients}
        absent = {client: outcome.absent for client, outcome in outcomes.items() if outcome.absent}
        answers = sorted(outcomes.keys() - absent.keys(), key=lambda client: (outcomes[client].time, client))
        closed = len(answers) >= self.wanted > 0
        if closed:
            late = f"too late: the round was closed when {self.wanted} had answered"
            absent |= dict.fromkeys(answers[self.wanted :], late)
            answers = answers[: self.wanted]
        heard = answers if closed else outcomes  # a server that isn't served waits for everybody, up to the deadline
        return Plan(
            {client: outcomes[client].work for client in clients if client not in absent},
            absent,
            max((outcomes[client].time for client in heard), default=0.0),
        )

    def _draw(self, what: str, client: ClientId) -> float:
        """Return a number above 0 and below 1; no two draws have anything to do with each other."""
        digest = hashlib.blake2b(f"{self.seed}/{what}/{client}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "little") % _GRID + 0.5) / _GRID
