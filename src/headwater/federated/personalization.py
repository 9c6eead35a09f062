"""The verb `personalize`: each client fits a head of its own on its own rows; the encoder stays shared.

Shapes: N rows, F pooled features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from headwater.checkpoint import Checkpoint
from headwater.config import RunOptions
from headwater.data.rows import Rows
from headwater.errors import CheckpointError, DataError
from headwater.evaluation import Evaluation
from headwater.federated.measuring import Classified, Measure, Measured
from headwater.federated.population import Population, PopulationOptions, read_population
from headwater.federated.verb import client_rows
from headwater.stage import Outcome, Workspace, run_stage
from headwater.tasks.classification import PooledLinear, pooled_states
from headwater.weights import Weights

HEAD = ("head.linear.weight", "head.linear.bias")


class PersonalizeOptions(PopulationOptions, RunOptions):
    """Options of `personalize`."""

    strength: Annotated[float, Field(gt=0.0)] = 0.3
    """How strongly a client's head is held to the shared one: as much as this many rows would; large values keep it."""

    def unread(self) -> dict[str, str]:
        """Nothing is chosen by held-out rows, so with test rows all the others are learned from."""
        return super().unread() | ({"valid": "without --test"} if self.test else {})


@dataclass(frozen=True)
class Head:
    """A linear head: weight (K, F) and bias (K,), float64."""

    weight_KF: Tensor
    bias_K: Tensor

    def probabilities(self, pooled_NF: np.ndarray) -> np.ndarray:
        """Return class probabilities (N, K) of pooled states."""
        logits_NK = torch.from_numpy(pooled_NF) @ self.weight_KF.T + self.bias_K
        return logits_NK.softmax(1).numpy()

    def weights(self) -> Weights:
        """Return the head under the model's parameter names, float32."""
        return dict(zip(HEAD, (self.weight_KF.float(), self.bias_K.float()), strict=True))


def personalize(checkpoint: Checkpoint, options: PersonalizeOptions) -> Checkpoint:
    """Give each client a head of its own.

    Returns:
        The checkpoint with the clients' heads, as written to ``options.out``.

    Raises:
        HeadwaterError: The data, the options or the output folder can't be used.
    """
    run_stage("personalize", options, lambda workspace: _work(checkpoint, options, workspace), checkpoint)
    return Checkpoint.load(options.out)


def _work(checkpoint: Checkpoint, options: PersonalizeOptions, workspace: Workspace) -> Outcome:
    if not checkpoint.labels:
        raise CheckpointError(f"{checkpoint.path} is no classifier: federate or transfer it to labelled rows first")
    population = read_population(options, options.seed, checkpoint.labels, checkpoint.featurizer.options)
    if population.labels != checkpoint.labels:
        strange = min(set(population.labels) - set(checkpoint.labels))
        raise DataError(
            f"{options.data}: the model doesn't know the label {strange!r}; it knows {', '.join(checkpoint.labels)}: "
            "federate or transfer it to rows of that label first"
        )
    if population.test_name == "test":  # then nothing is chosen by the held-out rows: they are the clients' to use
        population = replace(population, train=population.everything())
    train, test = _pooled(checkpoint, population.train), _pooled(checkpoint, population.test)
    weights = checkpoint.weights()
    shared = Head(weights[HEAD[0]].double(), weights[HEAD[1]].double())
    before_NK = shared.probabilities(test)
    after_NK = before_NK.copy()
    targets = population.train.encode(checkpoint.featurizer, checkpoint.labels).targets_N
    test_rows = population.test.by_client()
    personal: dict[str, Weights] = {}
    clients = population.train.by_client()
    for number, (client, rows) in enumerate(clients.items(), 1):
        head = fit_head(shared, train[rows], targets[rows], options.strength)
        personal[client] = head.weights()
        if client in test_rows:
            after_NK[test_rows[client]] = head.probabilities(test[test_rows[client]])
        workspace.progress.advance(number, len(clients))
    measure = Measure(population.test, checkpoint.config.make_task(), checkpoint.featurizer, checkpoint.labels)
    before, after = (
        Classified(measure, Evaluation.of(population.test, checkpoint.labels, probabilities_NK))
        for probabilities_NK in (before_NK, after_NK)
    )
    facts = after.facts(population.test_name)
    facts["metrics"] |= {"before": before.figures(), "after": after.figures()}
    facts |= {
        "method": "head",
        "device": "cpu",
        "data": [population.train.use("train"), population.test.use("test")],
        "clients": client_rows(population, {"accuracy_before": before, "accuracy_after": after}),
        "notes": [*_notes(population, before, after), *population.notes(checkpoint.featurizer)],
    }
    return Outcome(replace(checkpoint, personal=personal), facts, (checkpoint,))


def fit_head(shared: Head, pooled_NF: np.ndarray, targets_N: np.ndarray, strength: float) -> Head:
    """Fit a head on a client's rows, held to the shared one by a quadratic term (L2-SP; Li et al. 2018).

    Minimizes the sum of the cross entropies plus ``strength / 2`` times the squared distance to the shared head, in
    units of the pooled states' mean square: convex, so the answer is one, without seeds or learning rates.

    Args:
        shared: Where to start, and what to stay near.
        pooled_NF: The client's pooled states.
        targets_N: Their label numbers.
        strength: See above.
    """
    x_NF, y_N = torch.from_numpy(pooled_NF), torch.from_numpy(targets_N)
    scale = strength * float(x_NF.square().sum(1).mean())
    weight = torch.zeros_like(shared.weight_KF, requires_grad=True)
    bias = torch.zeros_like(shared.bias_K, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_NK = x_NF @ (shared.weight_KF + weight).T + shared.bias_K + bias
        value = F.cross_entropy(logits_NK, y_N, reduction="sum")
        value = value + scale / 2 * (weight.square().sum() + bias.square().sum())
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return Head(shared.weight_KF + weight.detach(), shared.bias_K + bias.detach())


def _pooled(checkpoint: Checkpoint, rows: Rows) -> np.ndarray:
    model = checkpoint.model()
    if not isinstance(model.head, PooledLinear):
        raise CheckpointError(f"{checkpoint.path}: only linear heads on pooled states can be personalized")
    return pooled_states(model, rows.encode(checkpoint.featurizer, checkpoint.labels))


def _notes(population: Population, before: Measured, after: Measured) -> list[str]:
    clients = population.test.by_client()
    gain = np.array([after.of_client(name)["accuracy"] - before.of_client(name)["accuracy"] for name in clients])
    gained, lost, same = int((gain > 0).sum()), int((gain < 0).sum()), int((gain == 0).sum())
    return [f"{gained} clients gained, {lost} lost, {same} stayed as they were."]
