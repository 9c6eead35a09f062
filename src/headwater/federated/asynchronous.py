"""Buffered asynchronous aggregation: the server steps when so many have answered, and waits for nobody.

Shapes: F clients in flight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Annotated, Protocol

import torch
from pydantic import Field

from headwater.config import Config
from headwater.federated.algorithm import Pace, Step
from headwater.federated.conditions import Outcome
from headwater.federated.protocols import (
    ClientId,
    Cohort,
    FederatedAlgorithm,
    Instruction,
    Replies,
    Update,
    expected,
)
from headwater.federated.sampling import Draws
from headwater.weights import Weights, part


class AsynchronousOptions(Config):
    """When the server steps."""

    buffer: Annotated[int, Field(ge=0)] = 0
    """Aggregate asynchronously (FedBuff): the server steps whenever so many clients have answered, waits for nobody,
    and counts an answer less the older the weights are that it began with; 0 goes in rounds."""
    concurrency: Annotated[int, Field(ge=1)] = 10
    """Clients at work at any time, with `--buffer`."""

    def unread(self) -> dict[str, str]:
        """There are rounds, or there are none."""
        without_rounds = dict.fromkeys(("participation", "cohort", "over_select"), "without --buffer")
        return super().unread() | (without_rounds if self.buffer else {"concurrency": "with --buffer"})


class Clock(Protocol):
    """What says how long a client takes; the cohort's conditions must say the same."""

    def outcome(self, round_number: int, client: ClientId) -> Outcome:
        """Return what becomes of a client that was given the weights of a round."""


@dataclass(frozen=True, order=True)
class Flight:
    """A client at work.

    Attributes:
        until: When the server will know of it.
        number: Of its start, counted over the whole run.
        place: Among the sorted clients.
        version: The round whose weights it was given.
    """

    until: float
    number: int
    place: int
    version: int


@dataclass
class Buffered(Pace):
    """FedBuff (Nguyen et al. 2022, arXiv:2106.06639, algorithm 1), over simulated time.

    So many clients are at work at any time: whenever one is done, or known to have failed, another one is given the
    weights as they are now. When the buffer is full the server steps. An update that began with weights that are tau
    steps old counts 1 / sqrt(1 + tau) times, before the aggregator sees it. From one step to the next no client is
    asked twice; if nobody is left to ask, the server steps with what it has. Updates are taken in by the age of their
    weights, the oldest first, and then by the clients' names. Bytes are counted when an answer comes, both ways.

    Attributes:
        buffer: K, the answers that a step is made from.
        concurrency: Clients at work at any time, if there are as many.
        draws: Who is asked next.
        clock: How long clients take.
    """

    buffer: int
    concurrency: int
    draws: Draws
    clock: Clock
    _now: float = 0.0
    _started: int = 0
    _flights: list[Flight] = field(default_factory=list)
    _versions: dict[int, Instruction] = field(default_factory=dict)

    def step(self, algorithm: FederatedAlgorithm, cohort: Cohort, instruction: Instruction) -> Step:
        """Let time go on until the buffer is full."""
        began, clients = self._now, cohort.clients()
        self._versions[instruction.round] = instruction
        landed = self._landings(clients, instruction.round)
        replies, ages = Replies(time=self._now - began), []

        def updates() -> Iterator[Update]:
            for version, flights in groupby(sorted(landed, key=_by_age), key=lambda flight: flight.version):
                names = [clients[flight.place] for flight in flights]
                age = instruction.round - version
                for update in cohort.gather(self._versions[version], names, algorithm.transforms):
                    ages.append(age)
                    yield discounted(update, age, instruction.weights)
                replies.metrics |= cohort.replies.metrics
                replies.absent |= cohort.replies.absent
                replies.refused |= cohort.replies.refused

        aggregate = algorithm.aggregator(updates(), expected(instruction.weights, algorithm.transforms))
        self._versions = {flight.version: self._versions[flight.version] for flight in self._flights}
        return Step(instruction, aggregate, len(landed), replies, sum(ages) / len(ages) if ages else None)

    def state(self) -> Weights:
        """Return the clock, who is in flight, and the weights that they were given."""
        flights = sorted(self._flights)
        state = {
            "now": torch.tensor(self._now, dtype=torch.float64),
            "started": torch.tensor(self._started),
            "until_F": torch.tensor([flight.until for flight in flights], dtype=torch.float64),
            "flights_F3": torch.tensor(
                [[flight.number, flight.place, flight.version] for flight in flights], dtype=torch.int64
            ),
        }
        for version, sent in self._versions.items():
            state |= {f"{version}/weights/{name}": value for name, value in sent.weights.items()}
            state |= {f"{version}/extra/{name}": value for name, value in sent.extra.items()}
            state |= {f"{version}/encoded/{name}": value for name, value in sent.encoded.items()}
            state[f"{version}/seed"] = torch.tensor(sent.seed)
        return state

    def restore(self, state: Weights) -> None:
        """Take up a saved state; an empty one is the beginning."""
        if not state:
            return
        self._now, self._started = float(state["now"]), int(state["started"])
        numbers = zip(state["until_F"].tolist(), state["flights_F3"].tolist(), strict=True)
        self._flights = [Flight(until, *flight) for until, flight in numbers]
        for version in {flight.version for flight in self._flights}:
            sent = part(state, f"{version}/")
            self._versions[version] = Instruction(
                version,
                part(sent, "weights/"),
                int(sent["seed"]),
                part(sent, "extra/"),
                part(sent, "encoded/"),
            )

    def _landings(self, clients: Sequence[ClientId], round_number: int) -> list[Flight]:
        """Start clients and let time go on until the buffer is full; return who has come back, or has failed to."""
        landed: list[Flight] = []
        answers = 0
        while answers < self.buffer:
            self._start(clients, round_number, landed)
            if self._flights:
                flight = min(self._flights)
                self._flights.remove(flight)
                self._now = flight.until
                landed.append(flight)
                answers += not self.clock.outcome(flight.version, clients[flight.place]).absent
            elif len(landed) < len(clients):
                self._now = math.floor(self._now) + 1.0  # all the others are away: until somebody comes
            else:
                break
        return landed

    def _start(self, clients: Sequence[ClientId], round_number: int, landed: Sequence[Flight]) -> None:
        """Give the weights to new clients, up to so many at work."""
        busy = {flight.place for flight in (*self._flights, *landed)}
        while len(self._flights) < self.concurrency:
            drawn = self.draws.draw(self._started + 1, clients, 1, self._now, busy)
            if not drawn:
                return
            self._started += 1
            until = self._now + self.clock.outcome(round_number, clients[drawn[0]]).time
            self._flights.append(Flight(until, self._started, drawn[0], round_number))
            busy.add(drawn[0])


def discounted(update: Update, age: int, like: Weights) -> Update:
    """Return an update that counts less by the age of the weights that it began with; what a method adds stays."""
    scale = 1 / math.sqrt(1 + age)
    return replace(update, delta=update.delta | {name: update.delta[name] * scale for name in like}) if age else update


def _by_age(flight: Flight) -> tuple[int, int]:
    return flight.version, flight.place
