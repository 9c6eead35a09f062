"""A model measured on the clients' rows that are held out: for all of them together, and for each by itself.

Shapes: N rows, K classes, C clients.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from headwater.baselines import baselines, unigram
from headwater.data.rows import Rows
from headwater.evaluation import Evaluation, score_record
from headwater.features.featurizer import Featurizer
from headwater.federated.population import Population
from headwater.federated.protocols import ClientId
from headwater.metrics import TokenCounts
from headwater.model import SequenceModel
from headwater.records import ClientRow, Metrics
from headwater.statistics import worst_decile
from headwater.tasks import Task
from headwater.tasks.classification import class_probabilities
from headwater.weights import Weights, load_weights

_BATCH = 64


class Measured(Protocol):
    """What a model makes of rows, each of which belongs to a client."""

    def figures(self) -> Metrics:
        """Return the figures over all rows."""

    def of_client(self, client: ClientId) -> Metrics:
        """Return the figures over a client's rows."""

    def facts(self, where: str) -> dict[str, Any]:
        """Return the fields of a stage record."""

    def with_clients(self, models: Iterable[tuple[ClientId, SequenceModel]]) -> Self:
        """Return this with the rows of some clients measured by models of their own."""


class Measure:
    """Measures models on rows.

    Args:
        rows: At least one, with their clients.
        task: What the models do.
        featurizer: Prepares the rows.
        labels: Of the models; none for tasks without.
    """

    def __init__(self, rows: Rows, task: Task, featurizer: Featurizer, labels: Sequence[str]) -> None:
        self.rows, self.task, self.labels = rows, task, labels
        self.by_client = rows.by_client()
        self.examples = rows.encode(featurizer, labels)

    def figures(self, model: SequenceModel) -> Metrics:
        """Return the figures over all rows."""
        return self.task.count(model, self.examples, _BATCH).figures()

    def __call__(self, model: SequenceModel) -> Measured:
        """Return what a model makes of the rows."""
        if self.task.needs_labels:
            probabilities_NK = class_probabilities(model, self.examples)
            return Classified(self, Evaluation.of(self.rows, self.labels, probabilities_NK))
        return Read(self, {client: self.tokens(model, client) for client in self.by_client})

    def by_own_models(self, of: Measured, model: SequenceModel, own: Iterable[tuple[ClientId, Weights]]) -> Measured:
        """Return a measurement of the rows with those of some clients read by a model with their own weights."""

        def models() -> Iterator[tuple[ClientId, SequenceModel]]:
            for client, weights in own:
                if client in self.by_client:
                    load_weights(model, weights)
                    yield client, model

        return of.with_clients(models())

    def tokens(self, model: SequenceModel, client: ClientId) -> TokenCounts:
        """Return a language model's counts of a client's rows."""
        counts: TokenCounts = self.task.count(model, self.examples.take(self.by_client[client]), _BATCH)  # type: ignore[assignment]
        return counts


@dataclass(frozen=True)
class Classified:
    """Labels told apart."""

    measure: Measure
    evaluation: Evaluation

    def figures(self) -> Metrics:
        """Return the figures over all rows."""
        return self.evaluation.figures() | self.evaluation.scores().figures()

    def of_client(self, client: ClientId) -> Metrics:
        """Return the figures over a client's rows."""
        return self.evaluation.counts(self.measure.by_client[client]).figures()

    def facts(self, where: str) -> dict[str, Any]:
        """Return the fields of a stage record."""
        scores = score_record(self.evaluation.scores(), self.measure.labels)
        return self.evaluation.facts(where) | {"metrics": {where: self.figures()}, "scores": scores}

    def with_clients(self, models: Iterable[tuple[ClientId, SequenceModel]]) -> Classified:
        """Return this with the rows of some clients measured by models of their own."""
        probabilities_NK = self.evaluation.probabilities_NK.copy()
        for client, model in models:
            rows = self.measure.by_client[client]
            probabilities_NK[rows] = class_probabilities(model, self.measure.examples.take(rows))
        return replace(self, evaluation=replace(self.evaluation, probabilities_NK=probabilities_NK))


@dataclass(frozen=True)
class Read:
    """Tokens predicted."""

    measure: Measure
    counts: dict[ClientId, TokenCounts]

    def figures(self) -> Metrics:
        """Return the figures over all tokens, which are those of the clients' merged counts."""
        return sum(self.counts.values(), TokenCounts(0, 0, 0.0)).figures()

    def of_client(self, client: ClientId) -> Metrics:
        """Return the figures over a client's tokens."""
        return self.counts[client].figures()

    def facts(self, where: str) -> dict[str, Any]:
        """Return the fields of a stage record."""
        return {"metrics": {where: self.figures()}}

    def with_clients(self, models: Iterable[tuple[ClientId, SequenceModel]]) -> Read:
        """Return this with the rows of some clients measured by models of their own."""
        own = {client: self.measure.tokens(model, client) for client, model in models}
        return replace(self, counts=self.counts | own)


def changes_over_clients(clients: Iterable[ClientId], before: Measured, after: Measured) -> list[str]:
    """Return in two sentences what each client's own model changes for it."""
    of = [(before.of_client(client)["accuracy"], after.of_client(client)["accuracy"]) for client in clients]
    before_C, after_C = np.array(of).T
    gained, lost = int((after_C > before_C).sum()), int((after_C < before_C).sum())
    worst, spread = (f"{figure(before_C):.3f} to {figure(after_C):.3f}" for figure in (worst_decile, _spread))
    return [
        f"Clients that gained: {gained}, lost: {lost}, stayed as they were: {len(before_C) - gained - lost}.",
        f"The accuracy of the worst tenth of the clients went from {worst}, the standard deviation from {spread}.",
    ]


def _spread(values_C: np.ndarray) -> float:
    return float(values_C.std(ddof=1)) if len(values_C) > 1 else 0.0


def trivial(population: Population, featurizer: Featurizer) -> dict[str, Metrics]:
    """Return the figures of what a model must beat, on the rows to report on."""
    if population.labels:
        return baselines(population.train, population.test, population.labels, featurizer)
    train, test = population.train.encode(featurizer, ()), population.test.encode(featurizer, ())
    return {"unigram": unigram(train, test, featurizer.sizes["vocabulary_size"])}


def client_rows(population: Population, views: dict[str, Measured]) -> list[ClientRow]:
    """Return each client's accuracy on its own test rows, in each view; clients without test rows are left out."""
    train = population.train.by_client()
    return [
        ClientRow(
            client=client,
            train_rows=len(train.get(client, ())),
            test_rows=len(rows),
            metrics={name: view.of_client(client)["accuracy"] for name, view in views.items()},
        )
        for client, rows in population.test.by_client().items()
    ]
