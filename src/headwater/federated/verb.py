"""The verb `federate`: a checkpoint and many clients' rows to a checkpoint that no client's rows have left home for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from headwater.checkpoint import Checkpoint
from headwater.data.rows import LEAST_HELD_OUT, TOO_FEW, Rows
from headwater.errors import CheckpointError, ConfigError, WorkerError
from headwater.federated.aggregators import Guarded, TrimmedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.assembly import Assembly, begun
from headwater.federated.controls import ALONE_EPOCHS, measure_alone, train_central
from headwater.federated.distributed import DistributedCohort, Ranks, joined
from headwater.federated.measuring import Measure, Measured, changes_over_clients, client_rows, trivial
from headwater.federated.notes import diverged_notes, fairness_notes, named
from headwater.federated.options import FederateOptions
from headwater.federated.personal.base import own_or_shared
from headwater.federated.population import read_population
from headwater.federated.protocols import ClientId, FederatedAlgorithm
from headwater.privacy.accounting import ACCOUNTANT, epsilon_by_round, epsilon_spent, noise_for
from headwater.progress import Progress
from headwater.records import Curve, Metrics, Privacy, RoundRow
from headwater.resume_state import load_state, save_state
from headwater.stage import Outcome, Workspace, run_stage, set_device, working_folder
from headwater.tasks import task_class
from headwater.weights import Weights, load_weights
from headwater.workers import one_thread

_SIMULATED = (
    "A simulation: the noise comes from the seed, and only the model is private. This record is not: each round's "
    "figures, who failed in it, and the clients' names, rows, labels, losses and accuracies are not noised."
)
_OWN = "The clients' own models beside the shared one:"
_ALIKE = "No client's own model differs from the shared one: the checkpoint holds that alone."
_AT_HOME = (
    "Epsilon is that of what clients send. Their own models, which this checkpoint holds too, are for them alone: they "
    "are neither clipped nor noised."
)
_LARGE_DELTA = 1e-3
"""From here on the chance that a promise of privacy doesn't hold outweighs a small epsilon."""
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
    with joined() as ranks:
        if ranks and ranks.rank:
            device = set_device(options)
            workspace = Workspace(working_folder(options), device, Progress("federate", quiet=True))
            _Federation(checkpoint, options, workspace, ranks).serve()
        else:
            run_stage(
                "federate",
                options,
                lambda workspace: _Federation(checkpoint, options, workspace, ranks).run(),
                checkpoint,
            )
    return Checkpoint.load(options.out)


class _Federation:
    """One run: reads the population, has the algorithm put together, runs it beside its controls."""

    def __init__(
        self, source: Checkpoint, options: FederateOptions, workspace: Workspace, ranks: Ranks | None = None
    ) -> None:
        self.source = source
        self.options = options
        self.workspace = workspace
        kind = task_class(options.task)
        self.population = read_population(
            options, options.seed, source.labels, source.featurizer.options, labelled=kind.needs_labels
        )
        by_valid = options.target or options.patience or options.aggregator == "validation"
        if by_valid and not len(self.population.valid):
            given = "target" if options.target else "patience" if options.patience else "the aggregator 'validation'"
            raise ConfigError(
                f"{options.data} has too few rows to hold {LEAST_HELD_OUT} of them out, and {given} goes by those: "
                "leave it out, or raise --valid"
            )
        self.checkpoint = begun(source, options, self.population.labels)
        self.model = self.checkpoint.model().to(workspace.device)
        if options.store and ranks:
            raise ConfigError("store: with torchrun every process would write the file: leave it out")
        store = workspace.folder / ".clients.arrow" if options.store else None
        self.examples = self.population.examples(self.checkpoint.featurizer, store)
        self.valid = self._measure(self.population.valid) if len(self.population.valid) else None
        self.test = self._measure(self.population.test)
        rows = {client: len(found) for client, found in self.population.train.by_client().items()}
        self.pieces = Assembly(options, self.checkpoint, self.model, self.examples, rows)
        data = self.population.train.sha256
        self.kept = workspace.folder / ".clients"
        self.cohort = self.pieces.cohort(self.kept, ranks, data)

    def _measure(self, rows: Rows) -> Measure:
        return Measure(rows, self.checkpoint.config.make_task(), self.checkpoint.featurizer, self.population.labels)

    def run(self) -> Outcome:
        """Run the rounds and the controls; return the facts."""
        algorithm, privacy = self.assemble()
        loaded = load_state(self.workspace.state_file())
        state = FederationState.of(*loaded) if loaded else FederationState(self.pieces.sent)
        if loaded and loaded[1]["clients_keep"] and not self.kept.is_dir():
            raise CheckpointError(
                f"what the clients had kept is gone from {self.kept}: delete {self.workspace.folder} and start again"
            )
        with self.cohort:
            weights, why = run_rounds(
                algorithm,
                self.cohort,
                state,
                self.stopping(),
                self.evaluate,
                seed=self.options.seed,
                pace=self.pieces.pace(algorithm.sampler),
                after_round=self.after_round,
            )
        facts = {
            "rounds": _with_epsilon(state.records, privacy) if privacy else state.records,
            "curves": _curves(state),
            "spread": self.population.spread(),
            "stopped": why,
            "privacy": privacy,
            "data": self.uses(),
            "baselines": trivial(self.population, self.checkpoint.featurizer),
            "notes": [*self.notes(algorithm), *self.idle(state.records)],
        }
        return self.outcome(weights, facts)

    def outcome(self, weights: Weights, facts: dict[str, Any]) -> Outcome:
        """Measure what the rounds have made, beside the controls."""
        made, weights = self.personal(weights, self.examples), self.shared(weights)
        diverged: list[ClientId] = []
        own = dict(own_or_shared(made, weights, diverged))
        before, shared = self.measure(self.pieces.start), self.measure(weights)
        views = {"accuracy_before": before, "accuracy": shared}
        beside: dict[str, Metrics] = {}
        if self.pieces.attack and (success := self.pieces.attack.measured(self.model, self.test.examples)):
            beside[self.options.attack] = success
        if own:
            views["accuracy_after"] = self.test.by_own_models(shared, self.model, own.items())
            beside["shared"] = shared.figures()
        best = views.get("accuracy_after", shared)
        differing_own = differing(own, weights)
        if before.figures()["accuracy"] > shared.figures()["accuracy"]:
            facts["notes"].append("The rounds made the shared model worse on the rows that it is reported on.")
        found = best.facts(self.population.test_name)
        found["metrics"] |= {"before": before.figures()} | beside
        learned = [client for client in self.test.by_client if client in self.examples]
        if own and learned:
            facts["notes"].append(f"{_OWN} {' '.join(changes_over_clients(learned, shared, best))}")
        if own:
            private = [_AT_HOME] if facts["privacy"] else []
            facts["notes"] += [*diverged_notes(diverged), *(private if differing_own else [_ALIKE])]
        if self.options.controls:
            views["accuracy_alone"] = self.add_controls(facts, before)
        facts |= found | {"method": self.method(), "clients": client_rows(self.population, views)}
        facts["notes"] += fairness_notes(facts["clients"])
        load_weights(self.model, weights)
        made_of = self.checkpoint.with_model(self.model)
        return Outcome(replace(made_of, personal=differing_own), facts, (self.source,))

    def method(self) -> str:
        """Return the pieces' names."""
        options = self.options
        personal = [] if options.personal == "none" else [options.personal]
        server = [] if options.server_optimizer == "sgd" else [options.server_optimizer]
        aggregator = "private mean" if options.epsilon else options.aggregator
        buffer = ["buffered"] if options.buffer else []
        pieces = "+".join([*personal, *options.method, aggregator, *server, *buffer, *options.codec])
        return pieces + (f" under {options.attack}" if options.attack != "none" else "")

    def serve(self) -> None:
        """Work off clients for the process that runs the stage.

        Raises:
            WorkerError: That one has failed, or its folder isn't seen from here.
        """

        def see_folder() -> None:
            if not self.workspace.folder.is_dir():
                raise WorkerError(
                    f"{self.workspace.folder} isn't seen from here: with torchrun all machines must see the folder "
                    "that --out lies in"
                )

        algorithm, _ = self.assemble()
        with self.cohort as cohort:
            assert isinstance(cohort, DistributedCohort)  # noqa: S101 - there are ranks
            cohort.serve(algorithm, see_folder)

    def stopping(self) -> Stopping:
        """Return when to end."""
        options = self.options
        # What clients keep is of the last round.
        keep_best = self.valid is not None and not options.epsilon and not self.pieces.personalizer
        return Stopping(
            options.rounds,
            options.target,
            options.patience,
            keep_best=keep_best,
            # With privacy whether the server steps must not tell how many have answered.
            min_replies=0 if options.epsilon else options.min_replies,
            evaluate_every=options.evaluate_every,
        )

    def assemble(self) -> tuple[FederatedAlgorithm, Privacy | None]:
        """Put the algorithm together."""
        options = self.options
        if not options.epsilon:
            return self.pieces.algorithm(self.accuracy), None
        rate, delta = self.pieces.sampling_rate(), self.pieces.delta
        self.workspace.progress.note(f"finding the noise that keeps within epsilon {options.epsilon:g} ...")
        noise = noise_for(options.epsilon, sampling_rate=rate, rounds=options.rounds, delta=delta)
        privacy = Privacy(
            epsilon=epsilon_spent(noise_multiplier=noise, sampling_rate=rate, rounds=options.rounds, delta=delta),
            delta=delta,
            noise_multiplier=noise,
            clip=options.update_clip,
            sampling_rate=rate,
            rounds=options.rounds,
            population=len(self.pieces.rows_C),
            accountant=ACCOUNTANT,
            note=_SIMULATED + (f" {_SEEN}" if self.seen_before() else ""),
        )
        return self.pieces.private_algorithm(noise), privacy

    def accuracy(self, weights: Weights) -> float:
        """Return the held-out accuracy of shared weights; what clients keep has no say in it."""
        load_weights(self.model, self.shared(weights))
        return self.held_out()["accuracy"]

    def evaluate(self, weights: Weights) -> Metrics:
        """Return the held-out figures of shared weights: with a method for it, of the clients' own models."""
        load_weights(self.model, self.shared(weights))
        if not (self.pieces.personalizer and self.valid):
            return self.held_out()
        clients = [client for client in self.valid.by_client if client in self.examples]
        own = own_or_shared(self.personal(weights, clients), self.shared(weights), [])
        return self.valid.by_own_models(self.valid(self.model), self.model, own).figures()

    def held_out(self) -> Metrics:
        """Return the held-out figures of the model as it is."""
        return self.valid.figures(self.model) if self.valid else {}

    def shared(self, weights: Weights) -> Weights:
        """Return the weights of the model of those who have none of their own."""
        personalizer = self.pieces.personalizer
        return self.pieces.start | personalizer.shared(weights) if personalizer else weights

    def personal(self, weights: Weights, clients: Iterable[ClientId]) -> Iterator[tuple[ClientId, Weights]]:
        """Yield the weights of the clients' own models, if there is a method for it."""
        if not self.pieces.personalizer:
            return
        for client in clients:
            with one_thread():
                own = self.pieces.personalizer.personal(weights, self.cohort.client(client))
            yield client, own

    def measure(self, weights: Weights) -> Measured:
        """Return what the model makes of the test rows, with these weights put in."""
        load_weights(self.model, weights)
        return self.test(self.model)

    def after_round(self, state: FederationState) -> None:
        """Save the state and show the figures."""
        facts = state.facts() | {"clients_keep": self.kept.is_dir()}
        save_state(self.workspace.state_file(), state.tensors(), facts)
        record = state.records[-1]
        sent = sum(row.bytes_up for row in state.records) / 2**20
        taken = f"{record.clients - len(record.failed)} of {record.clients} clients"
        time = f", time {record.time:.4g}" if self.timed() else ""
        more = f"{taken}, {sent:.1f} MiB up{time}"
        progress = self.workspace.progress
        progress.epoch_done(record.round, self.options.rounds, record.metrics, unit="round", more=more)
        progress.advance(record.round, self.options.rounds)

    def timed(self) -> bool:
        """Return whether time matters: clients are slow or late, or nobody waits for them."""
        return bool(self.options.speed_spread or self.options.deadline or self.options.buffer)

    def add_controls(self, facts: dict[str, Any], before: Measured) -> Measured:
        """Train both controls; return what each client reaches alone."""
        self.workspace.progress.note("controls: all rows in one place, then each client alone")
        local, start, seed = self.pieces.local, self.pieces.start, self.options.seed
        epochs = train_central(self.model, local.task, self.examples, start, self.held_out, seed)
        central = self.measure({})
        load_weights(self.model, start)
        rows = self.test.by_client
        alone, diverged = measure_alone(local, self.examples, start, before, rows, seed, self.pieces.processes)
        best = ", of which the best is kept," if self.valid else ""
        facts["notes"].append(
            f"The controls go by epochs, not by --rounds: {epochs} with all rows in one place{best} and {ALONE_EPOCHS} "
            "for each client alone."
        )
        if diverged:
            facts["notes"].append(
                f"Clients that diverged alone, and keep the start's answers: {len(diverged)} ({named(diverged)})."
            )
        facts["controls"] = {"central": central.figures(), "alone": alone.figures()}
        return alone

    def uses(self) -> list[Any]:
        """Return the records of the rows read."""
        population = self.population
        uses = [population.train.use("train")]
        if len(population.valid):
            uses.append(population.valid.use("valid"))
        if population.test_name == "test":
            uses.append(population.test.use("test"))
        return uses

    def notes(self, algorithm: FederatedAlgorithm) -> list[str]:
        """Return what a reader should know."""
        counts, attackers = self.pieces.rows_C, self.pieces.attackers
        shared = sum(value.numel() for value in self.pieces.sent.values())
        spread = f"{counts.min()} to {counts.max()} training rows (median {int(np.median(counts))})"
        notes = [f"{len(counts)} clients with {spread}; {shared:,} numbers are shared."]
        notes += self.population.notes(self.checkpoint.featurizer)
        if not len(self.population.valid):
            notes.append(f"{TOO_FEW}: --valid was ignored, the model is that of the last round.")
        if self.options.task == "classification" and self.checkpoint.labels != self.source.labels:
            notes.append("The clients' rows have other labels than the model had: its head was drawn anew.")
        if isinstance(algorithm.aggregator, Guarded | TrimmedMean):
            answers = self.pieces.answers
            taken = algorithm.aggregator.taken(answers)
            for_what = (
                "for hostile" if isinstance(algorithm.aggregator, Guarded) else "out of each number at either end"
            )
            none = "" if taken else ", so it holds against none"
            notes.append(f"{self.options.aggregator} takes {taken} of a round's {answers} clients {for_what}{none}.")
        if self.options.freeze == "embedding" and self.checkpoint.featurizer.modality != "text":
            notes.append("--freeze embedding was ignored: a model of numbers has none.")
        untrained = [client for client in self.test.by_client if client not in self.examples]
        if untrained:
            notes.append(
                "Clients with rows to measure on but none to learn from, measured with the shared model: "
                f"{len(untrained)} of {len(self.test.by_client)}."
            )
        if attackers:
            notes.append(f"Clients that attack ({self.options.attack}): {len(attackers)} ({named(attackers)}).")
        if self.options.epsilon:
            notes += self.private_notes()
        elif self.seen_before():
            notes.append(_SEEN)
        return notes

    def private_notes(self) -> list[str]:
        """Return what a promise of privacy rests on."""
        options, delta = self.options, self.pieces.delta
        drawn = self.pieces.sampling_rate() * len(self.pieces.rows_C)
        notes = [f"With --epsilon a round's clients are drawn each by itself (Poisson): {drawn:g} on average."]
        if delta > _LARGE_DELTA:
            more = "" if options.delta else ", and more clients or a larger epsilon"
            notes.append(
                f"Delta, the chance that the promise doesn't hold, is {delta:.1e}: epsilon says little. Give a --delta "
                f"of {_LARGE_DELTA:g} or less{more}."
            )
        if options.server_optimizer == "sgd" and options.server_momentum:
            notes.append("The server's momentum adds the noise of many rounds up: --server-momentum 0 does not.")
        return notes

    def idle(self, records: Sequence[RoundRow]) -> list[str]:
        """Return whether rounds went by without a step; with privacy there is always one, if only of noise."""
        if self.options.epsilon:
            noise = sum(record.clients == len(record.failed) > 0 for record in records)
            said = f"In {noise} of {len(records)} rounds no answer could be used: the step was of noise alone."
            return [said] if noise else []
        idle = sum(record.clients - len(record.failed) < self.options.min_replies for record in records)
        begun_with = ": the model is the one that it began with" if idle == len(records) else ""
        return [f"In {idle} of {len(records)} rounds too few answered for a step{begun_with}."] if idle else []

    def seen_before(self) -> bool:
        """Return whether an earlier stage of the model has already learned from the clients' file."""
        uses = [use for stage in self.source.lineage.stages for use in stage.data if use.role in _LEARNED]
        return any(use.sha256 == self.population.train.sha256 for use in uses)


def differing(personal: Mapping[ClientId, Weights], shared: Weights) -> dict[ClientId, Weights]:
    """Return of the clients' own models the weights in which any of them differs from the shared one."""
    names = {name for own in personal.values() for name in own if not torch.equal(own[name], shared[name])}
    if not names:
        return {}
    return {client: {name: own[name].clone() for name in sorted(names)} for client, own in personal.items()}


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
