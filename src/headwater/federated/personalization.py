"""The verb `personalize`: after a federation each client goes on by itself, on its own rows.

Shapes: N rows, F pooled features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from headwater.checkpoint import Checkpoint
from headwater.config import RunOptions
from headwater.errors import CheckpointError, DataError
from headwater.federated.client_updates import LocalTraining
from headwater.federated.measuring import Measure, changes_over_clients, client_rows
from headwater.federated.notes import diverged_notes
from headwater.federated.personal.base import own_or_shared
from headwater.federated.population import Population, PopulationOptions, read_population
from headwater.federated.protocols import Client, ClientId, Instruction
from headwater.model import SequenceModel
from headwater.stage import Outcome, Workspace, run_stage
from headwater.tasks.classification import PooledLinear, pooled_states
from headwater.weights import Weights, add_scaled, weights_of

_CLIP = 1.0
"""Largest L2 norm of the gradient in a step of fine-tuning, as in `federate`."""
_LEFT_BEHIND = "The clients' own weights of an earlier stage were left behind: each starts from the shared model."
HEAD = ("head.linear.weight", "head.linear.bias")


class PersonalizeOptions(PopulationOptions, RunOptions):
    """Options of `personalize`."""

    method: Literal["head", "fine_tune", "probe_fine_tune"] = "head"
    """What each client learns by itself: a `head`, a convex problem; all weights (`fine_tune`); or all weights from
    that head on (`probe_fine_tune`: the first steps then spoil less of the shared features)."""
    strength: Annotated[float, Field(gt=0.0)] = 0.3
    """How strongly a client's head is held to the shared one: as much as this many rows would; large values keep it."""
    epochs: Annotated[int, Field(ge=1)] = 3
    """Passes of a client over its rows, where it learns all weights."""
    lr: Annotated[float, Field(gt=0.0)] = 0.1
    """The learning rate of plain gradient descent then."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows a step then."""

    def unread(self) -> dict[str, str]:
        """Nothing is chosen by held-out rows, so with test rows all the others are learned from."""
        unread = super().unread() | ({"valid": "without --test"} if self.test else {})
        if self.method == "head":
            return unread | dict.fromkeys(("epochs", "lr", "batch_size"), "with another --method")
        return unread | ({"strength": "with another --method"} if self.method == "fine_tune" else {})


@dataclass(frozen=True)
class Head:
    """A linear head: weight (K, F) and bias (K,), float64."""

    weight_KF: Tensor
    bias_K: Tensor

    def weights(self) -> Weights:
        """Return the head under the model's parameter names, float32."""
        return dict(zip(HEAD, (self.weight_KF.float(), self.bias_K.float()), strict=True))


def personalize(checkpoint: Checkpoint, options: PersonalizeOptions) -> Checkpoint:
    """Give each client a head, or a model, of its own.

    Returns:
        The checkpoint with the clients' own weights, as written to ``options.out``.

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
    model = checkpoint.model().to(workspace.device)
    shared = weights_of(model)
    measure = Measure(population.test, checkpoint.config.make_task(), checkpoint.featurizer, checkpoint.labels)
    before = measure(model)
    clients = len(set(population.train.clients))
    personal: dict[ClientId, Weights] = {}
    diverged: list[ClientId] = []
    learned = _learned(checkpoint, model, shared, population, options)
    for number, (client, own) in enumerate(own_or_shared(learned, shared, diverged), 1):
        personal[client] = own
        workspace.progress.advance(number, clients)
    after = measure.by_own_models(before, model, ((client, shared | own) for client, own in personal.items()))
    facts = after.facts(population.test_name)
    facts["metrics"] |= {"before": before.figures(), "after": after.figures()}
    facts |= {
        "method": options.method,
        "data": [population.train.use("train"), population.test.use("test")],
        "clients": client_rows(population, {"accuracy_before": before, "accuracy_after": after}),
        "notes": [
            *changes_over_clients(population.test.by_client(), before, after),
            *diverged_notes(diverged),
            *([_LEFT_BEHIND] if checkpoint.personal else []),
            *population.notes(checkpoint.featurizer),
        ],
    }
    return Outcome(replace(checkpoint, personal=personal), facts, (checkpoint,))


def _learned(
    checkpoint: Checkpoint,
    model: SequenceModel,
    shared: Weights,
    population: Population,
    options: PersonalizeOptions,
) -> Iterator[tuple[ClientId, Weights]]:
    """Yield each client's own weights (from its own head on: Kumar et al. 2022, arXiv:2202.10054)."""
    task, device = checkpoint.config.make_task(), next(model.parameters()).device
    train = LocalTraining(model, task, options.epochs, options.batch_size, options.lr, clip=_CLIP, device=device)
    examples = population.examples(checkpoint.featurizer)
    heads = dict(_heads(checkpoint, model, population, options.strength)) if options.method != "fine_tune" else {}
    for client, rows in examples.items():
        own = heads.get(client, {})
        if options.method != "head":
            start = shared | own
            own = add_scaled(start, train(Instruction(1, start, options.seed), Client(client, rows)).delta)
        yield client, own


def _heads(
    checkpoint: Checkpoint, model: SequenceModel, population: Population, strength: float
) -> Iterator[tuple[ClientId, Weights]]:
    """Yield each client's head."""
    if not isinstance(model.head, PooledLinear):
        raise CheckpointError(
            f"{checkpoint.path}: only linear heads on pooled states can be fitted: use --method fine_tune"
        )
    weights = checkpoint.weights()
    shared = Head(weights[HEAD[0]].double(), weights[HEAD[1]].double())
    examples = population.train.encode(checkpoint.featurizer, checkpoint.labels)
    pooled_NF = pooled_states(model, examples)
    for client, rows in population.train.by_client().items():
        yield client, fit_head(shared, pooled_NF[rows], examples.targets_N[rows], strength).weights()


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
