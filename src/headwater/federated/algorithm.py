"""The round loop: it owns no socket, no file and no clock. Its whole state can be saved between two rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from headwater.errors import FederationError
from headwater.federated.protocols import (
    Average,
    AveragingCohort,
    ClientId,
    Cohort,
    FederatedAlgorithm,
    Instruction,
    Replies,
    expected,
)
from headwater.records import Metrics, RoundRow
from headwater.weights import Weights

_HOPELESS = 2
"""Rounds without an answer after which one more, in which answers come that can't be used, ends a federation."""


@dataclass(frozen=True)
class Stopping:
    """When a federation ends.

    Attributes:
        rounds: At the latest.
        target: As soon as the held-out accuracy reaches this; 0 for never.
        patience: After this many rounds without a better held-out accuracy; 0 for never.
        keep_best: End with the weights of the best round, not of the last.
        min_replies: Of fewer updates a round makes nothing: the weights stay, and what failed is recorded. With 0 the
            server always steps.
        evaluate_every: Rounds from one measurement to the next; the last is always measured, and target, patience and
            the best round go by those that are.
    """

    rounds: int
    target: float = 0.0
    patience: int = 0
    keep_best: bool = True
    min_replies: int = 1
    evaluate_every: int = 1

    def measures(self, round_number: int) -> bool:
        """Return whether a round is measured."""
        return round_number % self.evaluate_every == 0 or round_number >= self.rounds


@dataclass
class FederationState:
    """Everything that the next round depends on."""

    weights: Weights
    round: int = 0
    best_weights: Weights = field(default_factory=dict)
    best_score: float = -math.inf
    waited: int = 0
    records: list[RoundRow] = field(default_factory=list)
    method: Weights = field(default_factory=dict)
    pace: Weights = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return what isn't a tensor, as JSON values."""
        return {
            "round": self.round,
            "best_score": self.best_score,
            "waited": self.waited,
            "records": [record.model_dump() for record in self.records],
        }

    def tensors(self) -> Weights:
        """Return the tensors under names."""
        parts = {"now": self.weights, "best": self.best_weights, "method": self.method, "pace": self.pace}
        return {f"{part}/{name}": value for part, weights in parts.items() for name, value in weights.items()}

    @classmethod
    def of(cls, tensors: Weights, facts: dict[str, Any]) -> FederationState:
        """Return the state that `tensors` and `facts` were taken from."""
        parts: dict[str, Weights] = {"now": {}, "best": {}, "method": {}, "pace": {}}
        for key, value in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        return cls(
            parts["now"],
            facts["round"],
            parts["best"],
            facts["best_score"],
            facts["waited"],
            [RoundRow(**record) for record in facts["records"]],
            parts["method"],
            parts["pace"],
        )


@dataclass(frozen=True)
class Step:
    """What a step of the server is made from.

    Attributes:
        instruction: What the weights that the server has now were sent as.
        aggregate: Of the clients' updates.
        asked: How many clients were asked.
        replies: Who answered.
        staleness: How many steps old the weights were that the updates began with, on average, where that varies.
    """

    instruction: Instruction
    aggregate: Weights
    asked: int
    replies: Replies
    staleness: float | None = None


class Pace(Protocol):
    """When the server asks whom, and when it takes a step."""

    def step(self, algorithm: FederatedAlgorithm, cohort: Cohort, instruction: Instruction) -> Step:
        """Return what the server's next step is made from; the instruction holds the weights as they are now."""

    def state(self) -> Weights:
        """Return what the next step depends on."""

    def restore(self, state: Weights) -> None:
        """Take up a saved state."""


class InRounds(Pace):
    """All clients of a round begin with the same weights, and the server steps when the round is closed."""

    def step(self, algorithm: FederatedAlgorithm, cohort: Cohort, instruction: Instruction) -> Step:
        """Ask the sampled clients."""
        clients = algorithm.sampler.sample(instruction.round, cohort.clients())
        return Step(instruction, _aggregate(algorithm, cohort, instruction, clients), len(clients), cohort.replies)

    def state(self) -> Weights:
        """Return nothing: rounds are apart."""
        return {}

    def restore(self, state: Weights) -> None:
        """Take up nothing."""
        del state


def run_rounds(
    algorithm: FederatedAlgorithm,
    cohort: Cohort,
    state: FederationState,
    stopping: Stopping,
    evaluate: Callable[[Weights], Metrics],
    *,
    seed: int,
    pace: Pace | None = None,
    after_round: Callable[[FederationState], None] | None = None,
) -> tuple[Weights, str]:
    """Run rounds until a target, a plateau or the limit.

    Args:
        algorithm: The pieces.
        cohort: The clients.
        state: Where to begin; changed in place.
        stopping: When to end.
        evaluate: Returns the held-out figures of shared weights.
        seed: Goes to the clients.
        pace: When the server steps; in rounds, if it isn't said.
        after_round: Called with the state after each round: to save it, to show it.

    Returns:
        The final weights, and why it ended.

    Raises:
        FederationError: From the beginning, or in some rounds in a row, no client's answer could be used; or the
            model's held-out loss is no longer finite.
    """
    pace = pace or InRounds()
    algorithm.restore(state.method)
    pace.restore(state.pace)
    while not (why := _why_stop(state, stopping)):
        # In the order of the names: a resumed run reads its weights back in another order than it made them.
        instruction = Instruction(state.round + 1, dict(sorted(state.weights.items())), seed)
        for transform in algorithm.transforms:
            instruction = transform.on_instruct(instruction)
        down, up = cohort.bytes_down, cohort.bytes_up
        step = pace.step(algorithm, cohort, instruction)
        if stopping.min_replies:  # without a least number, as with privacy, who answers must not be told
            _check(step.replies, state)
        if len(step.replies.metrics) >= stopping.min_replies:
            _take(algorithm, state, step)
        state.method, state.pace = algorithm.state(), pace.state()
        metrics = _measured(evaluate, state, stopping)
        _finish(state, _row(state, step, metrics, cohort.bytes_down - down, cohort.bytes_up - up), stopping)
        if after_round:
            after_round(state)
    return (state.best_weights if stopping.keep_best else state.weights), why


def _take(algorithm: FederatedAlgorithm, state: FederationState, step: Step) -> None:
    """Take the server's step."""
    aggregate = step.aggregate
    for transform in reversed(algorithm.transforms):
        aggregate = transform.on_aggregate(aggregate, step.instruction, len(step.replies.metrics))
    state.weights = algorithm.server_optimizer.step(state.weights, aggregate)


def _measured(evaluate: Callable[[Weights], Metrics], state: FederationState, stopping: Stopping) -> Metrics:
    number = state.round + 1
    metrics = evaluate(state.weights) if stopping.measures(number) else {}
    if not math.isfinite(metrics.get("loss", 0.0)):
        raise FederationError(
            "the model's loss is no longer finite: lower --client-lr or --server-lr",
            client="(all)",
            round_number=number,
            stage="aggregate",
        )
    return metrics


def _row(state: FederationState, step: Step, metrics: Metrics, down: int, up: int) -> RoundRow:
    before = state.records[-1].time if state.records else 0.0
    replies = step.replies
    return RoundRow(
        round=step.instruction.round,
        clients=step.asked,
        bytes_down=down,
        bytes_up=up,
        metrics=metrics,
        losses=_spread([figures["loss"] for figures in replies.metrics.values() if "loss" in figures]),
        failed=replies.failed,
        time=before + replies.time,
        staleness=step.staleness,
    )


def _aggregate(
    algorithm: FederatedAlgorithm, cohort: Cohort, instruction: Instruction, clients: Sequence[ClientId]
) -> Weights:
    aggregator = algorithm.aggregator
    if isinstance(aggregator, Average) and not aggregator.one_by_one and isinstance(cohort, AveragingCohort):
        return cohort.average(instruction, clients, algorithm.transforms, aggregator)
    like = expected(instruction.weights, algorithm.transforms)
    return algorithm.aggregator(cohort.gather(instruction, clients, algorithm.transforms), like)


def _check(replies: Replies, state: FederationState) -> None:
    """Refuse to go on where nobody's answer could be used again and again: the next round would fail as well."""
    earlier = state.records[-_HOPELESS:]
    if replies.refused and not replies.metrics and all(len(row.failed) == row.clients for row in earlier):
        client, reason = next(iter(sorted(replies.refused.items())))
        raise FederationError(reason, client=client, round_number=state.round + 1, stage="receive")


def _spread(values: Sequence[float]) -> list[float]:
    """Return the least, the quartiles and the largest of some values."""
    return [float(value) for value in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])] if values else []


def _finish(state: FederationState, record: RoundRow, stopping: Stopping) -> None:
    state.round = record.round
    state.records.append(record)
    if not stopping.measures(record.round):
        return
    score = record.metrics.get("accuracy", float(record.round))
    if score > state.best_score:
        state.best_score, state.best_weights, state.waited = score, state.weights, 0
    else:
        state.waited += stopping.evaluate_every


def _why_stop(state: FederationState, stopping: Stopping) -> str:
    if stopping.target and state.best_score >= stopping.target:
        return f"reached the target accuracy {stopping.target} in round {state.round}"
    if stopping.patience and state.waited >= stopping.patience:
        return f"converged: no better held-out accuracy for {state.waited} rounds"
    return f"reached the limit of {stopping.rounds} rounds" if state.round >= stopping.rounds else ""
