"""The verb `federate`: a checkpoint and many clients' rows to a checkpoint that no client's rows have left home for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headwater.checkpoint import Checkpoint
from headwater.config import cores
from headwater.data.rows import TOO_FEW, Rows
from headwater.errors import ConfigError
from headwater.federated import AGGREGATORS, METHODS
from headwater.federated.aggregators import FixedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.clip_and_noise import ClipAndNoise
from headwater.federated.controls import measure_alone, train_central
from headwater.federated.measuring import Measure, Measured, trivial
from headwater.federated.options import FederateOptions
from headwater.federated.population import Population, read_population
from headwater.federated.protocols import FederatedAlgorithm
from headwater.federated.sampling import Poisson, Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.wire import Wire
from headwater.model import FROZEN, Freeze
from headwater.privacy.accounting import ACCOUNTANT, epsilon_by_round, epsilon_spent, noise_for
from headwater.records import ClientRow, Curve, Metrics, Privacy, RoundRow
from headwater.registry import made
from headwater.resume_state import load_state, save_state
from headwater.stage import Outcome, Workspace, run_stage
from headwater.statistics import over_clients
from headwater.tasks import task_class
from headwater.tasks.language_modeling import LanguageModelingOptions
from headwater.weights import Weights, load_weights, weights_of
from headwater.workers import can_fork

_SIMULATED = "A simulation: the noise comes from the seed, and the figures of each round are not noised."
_LEARNED = ("train", "source", "unlabelled")
_SEEN = (
    "An earlier stage of this model has learned from the same file of rows, all in one place and without noise: what "
    "is said of the clients' rows staying home, and of privacy, holds for this stage only."
)


def federate(checkpoint: Checkpoint, options: FederateOptions) -> Checkpoint:
    """Train a model over clients who keep their rows.

    Returns:
        The new checkpoint, as written to ``options.out``.

    Raises:
        HeadwaterError: The data, the options or the output folder can't be used, or a client failed.
    """
    run_stage("federate", options, lambda workspace: _Federation(checkpoint, options, workspace).run(), checkpoint)
    return Checkpoint.load(options.out)


class _Federation:
    """One run: reads the population, puts the algorithm together, runs it beside its controls."""

    def __init__(self, source: Checkpoint, options: FederateOptions, workspace: Workspace) -> None:
        self.source = source
        self.options = options
        self.workspace = workspace
        kind = task_class(options.task)
        self.population = read_population(
            options, options.seed, source.labels, source.featurizer.options, labelled=kind.needs_labels
        )
        if not len(self.population.valid) and (options.target or options.patience):
            raise ConfigError(
                f"{options.data} has too few rows to hold 50 of them out, and target and patience go by those: "
                "leave both at 0, or raise --valid"
            )
        self.checkpoint = _start(source, options, self.population.labels)
        self.model = self.checkpoint.model().to(workspace.device)
        self.task = self.checkpoint.config.make_task()
        store = workspace.folder / ".clients.arrow" if options.store else None
        self.examples = self.population.examples(self.checkpoint.featurizer, store)
        self.valid = self._measure(self.population.valid) if len(self.population.valid) else None
        self.test = self._measure(self.population.test)
        self.methods = [
            made("headwater.local_methods", METHODS, name, options, population=len(self.examples))
            for name in options.method
        ]
        self.local = LocalTraining(
            self.model,
            self.task,
            options.local_epochs,
            options.batch_size,
            options.client_lr,
            options.client_optimizer,
            options.clip,
            workspace.device,
            precision=options.precision,
            steps=options.local_steps,
            methods=self.methods,
            carry=options.hidden_state == "carried",
        )
        self.processes = _processes(options.processes)
        self.start = shared_weights(weights_of(self.model), options.freeze)
        private = options.epsilon > 0
        keep_best = len(self.population.valid) > 0 and not private
        self.stopping = Stopping(
            options.rounds,
            options.target,
            options.patience,
            keep_best=keep_best,
            min_replies=options.min_replies,
            evaluate_every=options.evaluate_every,
        )

    def _measure(self, rows: Rows) -> Measure:
        return Measure(rows, self.task, self.checkpoint.featurizer, self.population.labels)

    def run(self) -> Outcome:
        """Run the rounds and the controls; return the facts."""
        algorithm, privacy = self.assemble()
        loaded = load_state(self.workspace.state_file())
        state = FederationState.of(*loaded) if loaded else FederationState(self.start)
        with LocalCohort(
            self.examples,
            self.local,
            processes=self.processes,
            states=self.workspace.folder / ".clients",
            wire=Wire(self.options.zstd),
        ) as cohort:
            weights, why = run_rounds(
                algorithm,
                cohort,
                state,
                self.stopping,
                self.evaluate,
                seed=self.options.seed,
                after_round=self.after_round,
            )
        before, after = self.measure(self.start), self.measure(weights)
        facts = after.facts(self.population.test_name)
        facts["metrics"] |= {"before": before.figures()}
        facts |= {
            "method": "+".join([*self.options.method, "private mean" if privacy else self.options.aggregator]),
            "rounds": _with_epsilon(state.records, privacy) if privacy else state.records,
            "curves": _curves(state),
            "spread": self.population.spread(),
            "stopped": why,
            "privacy": privacy,
            "data": self.uses(),
            "baselines": trivial(self.population, self.checkpoint.featurizer),
            "notes": self.notes(),
        }
        alone = self.add_controls(facts, before) if self.options.controls else None
        facts["clients"] = self.client_rows(before, after, alone)
        facts["notes"] += fairness_notes(facts["clients"])
        load_weights(self.model, weights)
        return Outcome(self.checkpoint.with_model(self.model), facts, (self.source,))

    def assemble(self) -> tuple[FederatedAlgorithm, Privacy | None]:
        """Put the algorithm together."""
        options = self.options
        server = ServerSGD(options.server_lr, options.server_momentum)
        if not options.epsilon:
            plain = FederatedAlgorithm(
                client_update=self.local,
                transforms=self.methods,
                aggregator=made("headwater.aggregators", AGGREGATORS, options.aggregator, options),
                server_optimizer=server,
                sampler=Uniform(options.participation, options.seed),
            )
            return plain, None
        clients = len(self.examples)
        delta = options.delta or clients**-1.1
        rate = min(options.participation, 0.999)
        self.workspace.progress.note(f"finding the noise that keeps within epsilon {options.epsilon:g} ...")
        noise = noise_for(options.epsilon, sampling_rate=rate, rounds=options.rounds, delta=delta)
        expected = rate * clients
        privacy = Privacy(
            epsilon=epsilon_spent(noise_multiplier=noise, sampling_rate=rate, rounds=options.rounds, delta=delta),
            delta=delta,
            noise_multiplier=noise,
            clip=options.update_clip,
            sampling_rate=rate,
            rounds=options.rounds,
            population=clients,
            accountant=ACCOUNTANT,
            note=_SIMULATED + (f" {_SEEN}" if self.seen_before() else ""),
        )
        transform = ClipAndNoise(options.update_clip, noise, expected, options.seed)
        private = FederatedAlgorithm(
            client_update=self.local,
            transforms=(*self.methods, transform),
            aggregator=FixedMean(expected),
            server_optimizer=server,
            sampler=Poisson(rate, options.seed),
        )
        return private, privacy

    def evaluate(self, weights: Weights) -> Metrics:
        """Return the held-out figures of shared weights."""
        load_weights(self.model, weights)
        return self.held_out()

    def held_out(self) -> Metrics:
        """Return the held-out figures of the model as it is."""
        return self.valid.figures(self.model) if self.valid else {}

    def measure(self, weights: Weights) -> Measured:
        """Return what the model makes of the test rows, with these weights put in."""
        load_weights(self.model, weights)
        return self.test(self.model)

    def after_round(self, state: FederationState) -> None:
        """Save the state and show the figures."""
        save_state(self.workspace.state_file(), state.tensors(), state.facts())
        record = state.records[-1]
        self.workspace.progress.advance(record.round, self.options.rounds)
        self.workspace.progress.epoch_done(record.round, self.options.rounds, record.metrics, unit="round")

    def add_controls(self, facts: dict[str, Any], before: Measured) -> Measured:
        """Train both controls; return what each client reaches alone."""
        self.workspace.progress.note("controls: all rows in one place, then each client alone")
        train_central(self.model, self.task, self.examples, self.start, self.held_out, self.options.seed)
        central = self.measure({})
        load_weights(self.model, self.start)
        rows = self.test.by_client
        alone = measure_alone(self.local, self.examples, self.start, before, rows, self.options.seed, self.processes)
        facts["controls"] = {"central": central.figures(), "alone": alone.figures()}
        return alone

    def client_rows(self, before: Measured, after: Measured, alone: Measured | None) -> list[ClientRow]:
        """Return each client's figures on its own test rows."""
        views = {"accuracy_before": before, "accuracy": after} | ({"accuracy_alone": alone} if alone else {})
        return client_rows(self.population, views)

    def uses(self) -> list[Any]:
        """Return the records of the rows read."""
        population = self.population
        uses = [population.train.use("train")]
        if len(population.valid):
            uses.append(population.valid.use("valid"))
        if population.test_name == "test":
            uses.append(population.test.use("test"))
        return uses

    def notes(self) -> list[str]:
        """Return what a reader should know."""
        counts = np.array([len(rows) for rows in self.population.train.by_client().values()])
        shared = sum(value.numel() for value in self.start.values())
        spread = f"{counts.min()} to {counts.max()} training rows (median {int(np.median(counts))})"
        notes = [f"{len(counts)} clients with {spread}; {shared:,} numbers are shared."]
        notes += self.population.notes(self.checkpoint.featurizer)
        if not len(self.population.valid):
            notes.append(f"{TOO_FEW}: --valid was ignored, the model is that of the last round.")
        if self.options.task == "classification" and self.checkpoint.labels != self.source.labels:
            notes.append("The clients' rows have other labels than the model had: its head was drawn anew.")
        if self.seen_before():
            notes.append(_SEEN)
        return notes

    def seen_before(self) -> bool:
        """Return whether an earlier stage of the model has already learned from the clients' file."""
        uses = [use for stage in self.source.lineage.stages for use in stage.data if use.role in _LEARNED]
        return any(use.sha256 == self.population.train.sha256 for use in uses)


def _processes(wanted: int) -> int:
    if can_fork():
        return wanted or cores()
    if wanted > 1:
        raise ConfigError(
            f"--processes {wanted}: on a machine with a GPU the clients run in one process; leave it at 0"
        )
    return 1


def _start(source: Checkpoint, options: FederateOptions, labels: tuple[str, ...]) -> Checkpoint:
    """Return the model that all clients begin with."""
    if options.task == "classification":
        begun = source.for_labels(labels, options.seed)
    elif source.config.task["name"] == options.task:
        task = source.config.task | options.only(LanguageModelingOptions).model_dump()
        begun = source.plain()
        begun = replace(begun, config=begun.config.model_copy(update={"task": task}))
    else:
        raise ConfigError(
            f"task = {options.task!r}: the checkpoint is a {source.config.task['name']} model: "
            "make a language model of it first, with pretrain or transfer --task language_modeling"
        )
    if options.fresh:
        torch.manual_seed(options.seed)
        begun = begun.with_model(begun.config.build())
    return begun


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


def fairness_notes(clients: Sequence[ClientRow]) -> list[str]:
    """Return what the figures over all rows don't say: how unlike they are from client to client."""
    accuracies = [row.metrics["accuracy"] for row in clients]
    if len(accuracies) < 2:
        return []
    found = over_clients(accuracies)
    return [
        (
            f"Over the {len(accuracies)} clients with test rows, each counting the same: accuracy {found['mean']:.3f} "
            f"on average, {found['worst']:.3f} in the worst tenth (a gap of {found['gap']:.3f}), standard deviation "
            f"{found['spread']:.3f}, from {found['low']:.3f} to {found['high']:.3f}."
        )
    ]


def shared_weights(weights: Weights, freeze: Freeze) -> Weights:
    """Return the weights that clients train and send."""
    return {name: value for name, value in weights.items() if not name.startswith(FROZEN[freeze])}


def _with_epsilon(records: Sequence[RoundRow], privacy: Privacy) -> list[RoundRow]:
    spent = epsilon_by_round(privacy)
    return [record.model_copy(update={"epsilon": spent.get(record.round)}) for record in records]


def _curves(state: FederationState) -> list[Curve]:
    measured = [record for record in state.records if record.metrics]
    if not measured:
        return []
    rounds = [float(record.round) for record in measured]
    return [
        Curve(name=f"valid {name}", x_label="round", x=rounds, y=[record.metrics[name] for record in measured])
        for name in ("accuracy", "loss")
    ]
