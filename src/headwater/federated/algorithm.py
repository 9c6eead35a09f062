"""The round loop: it owns no socket, no file and no clock. Its whole state can be saved between two rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from headwater.errors import FederationError
from headwater.federated.protocols import Average, AveragingCohort, ClientId, Cohort, FederatedAlgorithm, Instruction
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
    """

    rounds: int
    target: float = 0.0
    patience: int = 0
    keep_best: bool = True


@dataclass
class FederationState:
    """Everything that the next round depends on."""

    weights: Weights
    round: int = 0
    best_weights: Weights = field(default_factory=dict)
    best_score: float = -math.inf
    waited: int = 0
    records: list[RoundRow] = field(default_factory=list)
    optimizer: Weights = field(default_factory=dict)

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
        parts = {"now": self.weights, "best": self.best_weights, "optimizer": self.optimizer}
        return {f"{part}/{name}": value for part, weights in parts.items() for name, value in weights.items()}

    @classmethod
    def of(cls, tensors: Weights, facts: dict[str, Any]) -> FederationState:
        """Return the state that `tensors` and `facts` were taken from."""
        parts: dict[str, Weights] = {"now": {}, "best": {}, "optimizer": {}}
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
            parts["optimizer"],
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
    algorithm.server_optimizer.restore(state.optimizer)
    while not (why := _why_stop(state, stopping)):
        number = state.round + 1
        clients = algorithm.sampler.sample(number, cohort.clients())
        instruction = Instruction(number, state.weights, seed)
        down, up = cohort.bytes_down, cohort.bytes_up
        aggregate = _aggregate(algorithm, cohort, instruction, clients)
        for transform in reversed(algorithm.transforms):
            aggregate = transform.on_aggregate(aggregate, instruction)
        state.weights = algorithm.server_optimizer.step(state.weights, aggregate)
        state.optimizer = algorithm.server_optimizer.state()
        metrics = evaluate(state.weights)
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
        )
        _finish(state, record)
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
    return algorithm.aggregator(cohort.gather(instruction, clients, algorithm.transforms), instruction.weights)


def _finish(state: FederationState, record: RoundRow) -> None:
    state.round = record.round
    state.records.append(record)
    score = record.metrics.get("accuracy", float(record.round))
    if score > state.best_score:
        state.best_score, state.best_weights, state.waited = score, state.weights, 0
    else:
        state.waited += 1


def _why_stop(state: FederationState, stopping: Stopping) -> str:
    if stopping.target and state.best_score >= stopping.target:
        return f"reached the target accuracy {stopping.target} in round {state.round}"
    if stopping.patience and state.waited >= stopping.patience:
        return f"converged: no better held-out accuracy for {state.waited} rounds"
    return f"reached the limit of {stopping.rounds} rounds" if state.round >= stopping.rounds else ""
