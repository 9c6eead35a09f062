"""The round loop: it owns no socket, no file and no clock. Its whole state can be saved between two rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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


@dataclass(frozen=True)
class Stopping:
    """When a federation ends.

    Attributes:
        rounds: At the latest.
        target: As soon as the held-out accuracy reaches this; 0 for never.
        patience: After this many rounds without a better held-out accuracy; 0 for never.
        keep_best: End with the weights of the best round, not of the last.
        min_replies: Of fewer updates a round makes nothing: the weights stay, and what failed is recorded.
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
        parts = {"now": self.weights, "best": self.best_weights, "method": self.method}
        return {f"{part}/{name}": value for part, weights in parts.items() for name, value in weights.items()}

    @classmethod
    def of(cls, tensors: Weights, facts: dict[str, Any]) -> FederationState:
        """Return the state that `tensors` and `facts` were taken from."""
        parts: dict[str, Weights] = {"now": {}, "best": {}, "method": {}}
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
        )


def run_rounds(
    algorithm: FederatedAlgorithm,
    cohort: Cohort,
    state: FederationState,
    stopping: Stopping,
    evaluate: Callable[[Weights], Metrics],
    *,
    seed: int,
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
        after_round: Called with the state after each round: to save it, to show it.

    Returns:
        The final weights, and why it ended.

    Raises:
        FederationError: A client's answer can't be used.
    """
    algorithm.restore(state.method)
    while not (why := _why_stop(state, stopping)):
        number = state.round + 1
        clients = algorithm.sampler.sample(number, cohort.clients())
        instruction = Instruction(number, state.weights, seed)
        for transform in algorithm.transforms:
            instruction = transform.on_instruct(instruction)
        down, up = cohort.bytes_down, cohort.bytes_up
        aggregate = _aggregate(algorithm, cohort, instruction, clients)
        replies = cohort.replies
        _check(replies, number)
        if len(replies.metrics) >= stopping.min_replies or not clients:
            for transform in reversed(algorithm.transforms):
                aggregate = transform.on_aggregate(aggregate, instruction, len(replies.metrics))
            state.weights = algorithm.server_optimizer.step(state.weights, aggregate)
            state.method = algorithm.state()
        metrics = evaluate(state.weights) if stopping.measures(number) else {}
        if not math.isfinite(metrics.get("loss", 0.0)):
            raise FederationError(
                "the model's loss is no longer finite: lower --client-lr or --server-lr",
                client="(all)",
                round_number=number,
                stage="aggregate",
            )
        record = RoundRow(
            round=number,
            clients=len(clients),
            bytes_down=cohort.bytes_down - down,
            bytes_up=cohort.bytes_up - up,
            metrics=metrics,
            losses=_spread([figures["loss"] for figures in replies.metrics.values() if "loss" in figures]),
            failed=replies.failed,
        )
        _finish(state, record, stopping)
        if after_round:
            after_round(state)
    return (state.best_weights if stopping.keep_best else state.weights), why


def _aggregate(
    algorithm: FederatedAlgorithm, cohort: Cohort, instruction: Instruction, clients: Sequence[ClientId]
) -> Weights:
    aggregator = algorithm.aggregator
    one_by_one = "__call__" in vars(type(aggregator))  # a class that overrides the call itself wants the updates
    if isinstance(aggregator, Average) and not one_by_one and isinstance(cohort, AveragingCohort):
        return cohort.average(instruction, clients, algorithm.transforms, aggregator)
    like = expected(instruction.weights, algorithm.transforms)
    return algorithm.aggregator(cohort.gather(instruction, clients, algorithm.transforms), like)


def _check(replies: Replies, number: int) -> None:
    """Refuse to go on where nobody's answer can be used: the next round would fail like this one."""
    if replies.refused and not replies.metrics:
        client, reason = next(iter(sorted(replies.refused.items())))
        raise FederationError(reason, client=client, round_number=number, stage="receive")


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
