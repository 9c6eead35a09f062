"""The two controls of a federation: each client alone, and all rows in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np

from headwater.data.batches import Examples
from headwater.evaluation import Evaluation
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.protocols import FederatedAlgorithm, Instruction
from headwater.federated.aggregators import Mean
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.records import Metrics
from headwater.tasks.classification import class_probabilities
from headwater.weights import Weights, add_scaled, load_weights

ALONE_EPOCHS = 5
"""Epochs of a client by itself: enough to fit its few rows, before it learns them by heart."""


def train_central(
    local: LocalTraining,
    clients: Mapping[str, Examples],
    start: Weights,
    stopping: Stopping,
    evaluate: Callable[[Weights], Metrics],
    seed: int,
) -> Weights:
    """Return the weights of one client that holds all the rows: the same budget of epochs, the same choice of the best.

    It is a federation of one, so its numbers are central training's own.
    """
    tokens = [e.tokens[s : s + n] for e in clients.values() for s, n in zip(e.starts_N, e.lengths_N, strict=True)]
    targets = np.concatenate([examples.targets_N for examples in clients.values()])
    algorithm = FederatedAlgorithm(
        client_update=local, aggregator=Mean(), server_optimizer=ServerSGD(), sampler=Uniform(1.0, seed)
    )
    cohort = LocalCohort({"all": Examples(tokens, list(targets))}, local)
    weights, _ = run_rounds(algorithm, cohort, FederationState(start), stopping, evaluate, seed=seed)
    return weights


def evaluate_alone(
    local: LocalTraining,
    clients: Mapping[str, Examples],
    start: Weights,
    test: Examples,
    test_rows: Mapping[str, np.ndarray],
    evaluation: Evaluation,
    seed: int,
) -> Evaluation:
    """Return the test rows' probabilities, each by the model that its own client has trained alone from `start`.

    Args:
        local: How a client trains in a round; here for several epochs at once.
        clients: Each client's training rows.
        start: The weights that all begin with.
        test: The test rows.
        test_rows: Each client's rows among them; a row of a client without training rows keeps the start's answer.
        evaluation: The start's evaluation of the test rows.
        seed: Of the run.
    """
    alone = copy.copy(local)
    alone.epochs = ALONE_EPOCHS
    probabilities_NK = evaluation.probabilities_NK.copy()
    for client, rows in test_rows.items():
        if client not in clients:
            continue
        update = alone(Instruction(1, start, seed), client, clients[client])
        load_weights(alone.model, add_scaled(start, update.delta))
        probabilities_NK[rows] = class_probabilities(alone.model, test.take(rows))
    return Evaluation(evaluation.labels, probabilities_NK, evaluation.targets_N, evaluation.fingerprint)
