"""The two controls of a federation: each client alone, and all rows in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from headwater.data.examples import Examples
from headwater.federated.client_updates import LocalTraining
from headwater.federated.measuring import Measured
from headwater.federated.personal.base import own_or_shared
from headwater.federated.protocols import ClientId, Instruction
from headwater.federated.simulation import LocalCohort
from headwater.fitting import task_objective, with_epochs
from headwater.model import SequenceModel
from headwater.records import Metrics
from headwater.tasks import Task
from headwater.trainer import NEVER, ParameterGroup, TrainOptions, fit
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
) -> int:
    """Train the model on all rows in one place, as `transfer --method init` does by default; return the epochs.

    The best epoch is chosen by what `evaluate` returns; the last one is taken if that is nothing.
    """
    load_weights(model, start)
    best_by = task.best if evaluate() else None
    inputs = [e.inputs[s : s + n] for e in clients.values() for s, n in zip(e.starts_N, e.lengths_N, strict=True)]
    targets = np.concatenate([examples.targets_N for examples in clients.values()])
    together = Examples(inputs, list(targets))
    options = TrainOptions()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in start)
    groups = [ParameterGroup(tuple(start)), ParameterGroup(("",), epochs=NEVER)]
    objective = task_objective(model, task, together, options, seed, next(model.parameters()).device)
    options = with_epochs(options, objective.steps_per_epoch * options.step_size)
    fit(model, [objective], evaluate, options, best_by=best_by, seed=seed, groups=groups[: 1 + _partly(model, start)])
    return options.epochs


def _partly(model: SequenceModel, start: Weights) -> bool:
    return len(start) < len(dict(model.named_parameters()))


def measure_alone(
    local: LocalTraining,
    clients: Mapping[str, Examples],
    start: Weights,
    before: Measured,
    test: Mapping[str, np.ndarray],
    seed: int,
    processes: int,
) -> tuple[Measured, list[ClientId]]:
    """Return what each client's own model makes of its test rows, trained alone from `start`, and who diverged.

    Those keep the start's answers.

    Args:
        local: How a client trains in a round; here for several epochs at once.
        clients: Each client's training rows.
        start: The weights that all begin with.
        before: What the start makes of the rows; those of a client without training rows keep its answer.
        test: The clients that have test rows, and which.
        seed: Of the run.
        processes: That the clients are spread over.
    """
    alone = replace(local, epochs=ALONE_EPOCHS, steps=0, methods=())
    learning = [client for client in test if client in clients]
    diverged: list[ClientId] = []

    def trained() -> Iterator[tuple[ClientId, SequenceModel]]:
        with LocalCohort(clients, alone, processes=processes) as cohort:
            updates = cohort.gather(Instruction(1, start, seed), learning, ())
            made = ((update.client, add_scaled(start, update.delta)) for update in updates)
            for client, weights in own_or_shared(made, start, diverged):
                load_weights(alone.model, weights)
                yield client, alone.model
        diverged.extend(cohort.replies.refused)

    return before.with_clients(trained()), diverged
