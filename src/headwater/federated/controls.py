"""The two controls of a federation: each client alone, and all rows in one place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import numpy as np

from headwater.data.examples import Examples
from headwater.evaluation import Evaluation
from headwater.federated.client_updates import LocalTraining
from headwater.federated.protocols import Instruction
from headwater.federated.simulation import LocalCohort
from headwater.fitting import with_epochs
from headwater.model import SequenceModel
from headwater.records import Metrics
from headwater.tasks import Task
from headwater.tasks.classification import class_probabilities
from headwater.trainer import NEVER, ParameterGroup, TaskObjective, TrainOptions, fit
from headwater.weights import Weights, add_scaled, load_weights

ALONE_EPOCHS = 5
"""Epochs of a client by itself: enough to fit its few rows, before it learns them by heart."""


def train_central(
    model: SequenceModel,
    task: Task,
    clients: Mapping[str, Examples],
    start: Weights,
    evaluate: Callable[[], Metrics],
    seed: int,
) -> None:
    """Train the model on all rows in one place, as `transfer --method init` does by default.

    The best epoch is chosen by what `evaluate` returns; the last one is taken if that is nothing.
    """
    load_weights(model, start)
    best_by = task.best if evaluate() else None
    inputs = [e.inputs[s : s + n] for e in clients.values() for s, n in zip(e.starts_N, e.lengths_N, strict=True)]
    targets = np.concatenate([examples.targets_N for examples in clients.values()])
    together = Examples(inputs, list(targets))
    options = with_epochs(TrainOptions(), len(together))
    device = next(model.parameters()).device
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in start)
    groups = [ParameterGroup(tuple(start)), ParameterGroup(("",), epochs=NEVER)]
    objective = TaskObjective(model, task, together, options.batch_size, seed, device)
    fit(model, [objective], evaluate, options, best_by=best_by, seed=seed, groups=groups[: 1 + _partly(model, start)])


def _partly(model: SequenceModel, start: Weights) -> bool:
    return len(start) < len(dict(model.named_parameters()))


def evaluate_alone(
    local: LocalTraining,
    clients: Mapping[str, Examples],
    start: Weights,
    test: Examples,
    test_rows: Mapping[str, np.ndarray],
    evaluation: Evaluation,
    seed: int,
    processes: int = 1,
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
        processes: That the clients are spread over.
    """
    alone = copy.copy(local)
    alone.epochs = ALONE_EPOCHS
    probabilities_NK = evaluation.probabilities_NK.copy()
    learning = [client for client in test_rows if client in clients]
    with LocalCohort(clients, alone, processes=processes) as cohort:
        for update in cohort.gather(Instruction(1, start, seed), learning, ()):
            load_weights(alone.model, add_scaled(start, update.delta))
            rows = test_rows[update.client]
            probabilities_NK[rows] = class_probabilities(alone.model, test.take(rows))
    return Evaluation(evaluation.labels, probabilities_NK, evaluation.targets_N, evaluation.fingerprint)
