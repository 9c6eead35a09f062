"""From options to pieces: what `federate` puts together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwater.checkpoint import Checkpoint
from headwater.config import cores
from headwater.data.examples import Examples
from headwater.errors import ConfigError
from headwater.federated import AGGREGATORS, ATTACKS, CODECS, METHODS, PERSONALIZERS, SAMPLERS, SERVER_OPTIMIZERS
from headwater.federated.aggregators import FixedMean
from headwater.federated.algorithm import InRounds, Pace
from headwater.federated.asynchronous import Buffered
from headwater.federated.attacks import Attack, Attacked, chosen_attackers
from headwater.federated.client_updates import LocalTraining
from headwater.federated.clip_and_noise import ClipAndNoise
from headwater.federated.codecs.transforms import EncodeUpdates, EncodeWeights
from headwater.federated.conditions import ConditionOptions, World
from headwater.federated.distributed import DistributedCohort, Ranks
from headwater.federated.options import FederateOptions
from headwater.federated.personal.base import Personalizer
from headwater.federated.protocols import (
    ClientId,
    ClientUpdate,
    FederatedAlgorithm,
    Sampler,
    ServerOptimizer,
    UpdateTransform,
)
from headwater.federated.sampling import Draws, Poisson, wanted
from headwater.federated.simulation import LocalCohort
from headwater.federated.used_rows import UsedRows
from headwater.federated.wire import Wire
from headwater.model import FROZEN, SequenceModel
from headwater.registry import made
from headwater.tasks.language_modeling import LanguageModeling, LanguageModelingOptions
from headwater.weights import Weights, weights_of
from headwater.workers import can_fork


def begun(source: Checkpoint, options: FederateOptions, labels: tuple[str, ...]) -> Checkpoint:
    """Return the model that all clients begin with.

    Raises:
        ConfigError: The source is a model for another task.
    """
    if options.task == "classification":
        found = source.for_labels(labels, options.seed)
    elif source.config.task["name"] == options.task:
        found = source.plain()
        task = source.config.task | options.only(LanguageModelingOptions).model_dump()
        found = replace(found, config=found.config.model_copy(update={"task": task}))
    else:
        raise ConfigError(
            f"task = {options.task!r}: the checkpoint is a {source.config.task['name']} model: "
            "make a language model of it first, with pretrain or transfer --task language_modeling"
        )
    if options.fresh:
        torch.manual_seed(options.seed)
        found = found.with_model(found.config.build())
    return found


def learning_weights(weights: Weights, options: FederateOptions) -> Weights:
    """Return the weights that learn.

    Raises:
        ConfigError: Adapters are to be shared, and there are none.
    """
    if options.share == "all":
        return {name: value for name, value in weights.items() if not name.startswith(FROZEN[options.freeze])}
    if not any(".adapter." in name for name in weights):
        raise ConfigError("share = 'adapters': the model has none: give it some with transfer --method adapters first")
    return {name: value for name, value in weights.items() if ".adapter." in name or name.startswith("head.")}


class Assembly:
    """The pieces that options make of a model and its clients.

    Args:
        options: Of the federation.
        checkpoint: What all clients begin with.
        model: Its model, on the device that computes; clients train it in place.
        examples: Each client's training rows.
        rows: How many each client has.

    Attributes:
        rows_C: The clients' training rows, in the sorted order of their names.
        local: Plain local training, as the methods change it.
        personalizer: What gives each client a model of its own, if that is wanted.
        attack: What the attackers do, if some do.
        attackers: Who they are.
        start: The weights that learn.
        sent: Those that clients send.

    Raises:
        ConfigError: The options don't fit the model or the clients.
    """

    def __init__(
        self,
        options: FederateOptions,
        checkpoint: Checkpoint,
        model: SequenceModel,
        examples: Mapping[ClientId, Examples],
        rows: Mapping[ClientId, int],
    ) -> None:
        self._options, self._examples, self._rows = options, examples, rows
        self.rows_C = np.array([rows[client] for client in sorted(rows)])
        self._world = self._make_world()
        self._methods: list[Any] = [
            made("headwater.local_methods", METHODS, name, options, population=len(rows))
            for name in sorted(options.method, key=lambda name: name == "fednova")
        ]
        self.local = LocalTraining(
            model,
            checkpoint.config.make_task(),
            options.local_epochs,
            options.batch_size,
            options.client_lr,
            options.client_optimizer,
            options.clip,
            next(model.parameters()).device,
            precision=options.precision,
            steps=options.local_steps,
            methods=self._methods,
            carry=options.hidden_state == "carried",
            lr_decay=options.client_lr_decay,
        )
        self.start = learning_weights(weights_of(model), options)
        self.personalizer: Personalizer | None = None
        if options.personal != "none":
            self.personalizer = made(
                "headwater.personalizers", PERSONALIZERS, options.personal, options, local=self.local
            )
        self.sent = self.personalizer.start(self.start) if self.personalizer else self.start
        self.attack: Attack | None = None
        self.attackers: list[ClientId] = []
        if options.attack != "none":
            self.attack = self._make_attack(checkpoint)
            self.attackers = chosen_attackers(list(rows), options.attackers, options.seed)

    @property
    def answers(self) -> int:
        """Of how many clients' answers a step is made if nobody fails; on average, where each is drawn by itself."""
        options = self._options
        return options.buffer or wanted(options.participation, options.cohort, len(self.rows_C))

    @property
    def delta(self) -> float:
        """The chance that a promise of privacy doesn't hold."""
        return self._options.delta or len(self.rows_C) ** -1.1

    @property
    def processes(self) -> int:
        """Over how many a round's clients are spread.

        Raises:
            ConfigError: More than this machine can have are wanted.
        """
        wanted_processes = self._options.processes
        if can_fork():
            # What torchrun starts on a machine shares its processors.
            return wanted_processes or max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if wanted_processes > 1:
            raise ConfigError(
                f"--processes {wanted_processes}: on a machine with a GPU the clients run in one process; leave it at 0"
            )
        return 1

    def cohort(self, states: Path, ranks: Ranks | None, data: str) -> LocalCohort:
        """Return the simulated clients.

        Args:
            states: Where they keep what they remember.
            ranks: The processes that torchrun has started, if it has.
            data: What tells the training rows from others.
        """
        given: dict[str, Any] = {
            "processes": self.processes,
            "states": states,
            "conditions": self._world,
            "wire": Wire(self._options.zstd),
        }
        if ranks:
            return DistributedCohort(ranks, data, self._examples, self._client_update(), **given)
        return LocalCohort(self._examples, self._client_update(), **given)

    def algorithm(self, accuracy: Callable[[Weights], float]) -> FederatedAlgorithm:
        """Return the algorithm without privacy; `accuracy` measures weights on the held-out rows."""
        options = self._options
        sampler = made(
            *("headwater.samplers", SAMPLERS, options.sampler, options),
            rows_C=self.rows_C,
            available=self._world.available,
        )
        return FederatedAlgorithm(
            transforms=[*self._used_rows(), *self._encoded(self._transforms())],
            aggregator=made("headwater.aggregators", AGGREGATORS, options.aggregator, options, accuracy=accuracy),
            server_optimizer=self._server(),
            sampler=sampler,
        )

    def sampling_rate(self) -> float:
        """Return the chance of each client to take part in a round, with privacy."""
        return self._options.cohort / len(self._rows) or self._options.participation

    def private_algorithm(self, noise_multiplier: float) -> FederatedAlgorithm:
        """Return the algorithm that clips each update and puts noise on their average."""
        options, rate = self._options, self.sampling_rate()
        expected = rate * len(self._rows)
        private = ClipAndNoise(options.update_clip, noise_multiplier, expected, options.seed)
        return FederatedAlgorithm(
            transforms=self._encoded([*self._transforms(), private]),
            aggregator=FixedMean(expected),
            server_optimizer=self._server(),
            sampler=Poisson(rate, options.seed, available=self._world.available),
        )

    def pace(self, sampler: Sampler) -> Pace:
        """Return when the server steps.

        Raises:
            ConfigError: The sampler can't draw clients one by one.
        """
        options = self._options
        if not options.buffer:
            return InRounds()
        if not isinstance(sampler, Draws):
            raise ConfigError(
                f"sampler = {options.sampler!r}: with --buffer clients are drawn one by one, which a sampler that "
                "derives from headwater.federated.sampling.Draws can do"
            )
        return Buffered(options.buffer, options.concurrency, sampler, self._world)

    def _client_update(self) -> ClientUpdate:
        honest = self.personalizer or self.local
        return Attacked(honest, self.attack, frozenset(self.attackers)) if self.attack else honest

    def _transforms(self) -> list[UpdateTransform]:
        return [*self._methods, *([self.personalizer] if self.personalizer else [])]

    def _server(self) -> ServerOptimizer:
        options = self._options
        server: ServerOptimizer = made(
            *("headwater.server_optimizers", SERVER_OPTIMIZERS, options.server_optimizer, options),
            lr=options.server_lr,
            momentum=options.server_momentum,
            beta2=options.server_beta2,
            tau=options.server_tau,
        )
        return server

    def _used_rows(self) -> Sequence[UpdateTransform]:
        """Return what averages the embedding's rows over those that used them, if that is wanted."""
        if not self._options.used_rows:
            return ()
        if UsedRows.name not in self.sent:
            raise ConfigError("used_rows: the clients share no embedding of tokens: leave it off, or share it")
        if isinstance(self.local.task, LanguageModeling) and self.local.task.tied:
            raise ConfigError(
                "used_rows: this model's softmax has the embedding's rows, so each step changes all of them: leave it "
                "off, or make the model with pretrain --no-tied"
            )
        return (UsedRows(),)

    def _encoded(self, transforms: Sequence[UpdateTransform]) -> list[UpdateTransform]:
        """Return the transforms with those behind them that write what they make with fewer bytes."""
        options = self._options
        up = [made("headwater.codecs", CODECS, name, options) for name in options.codec]
        encoded: list[UpdateTransform] = list(transforms)
        if up:
            encoded.append(EncodeUpdates(up, options.error_feedback, transforms))
        if options.down_codec != "none":
            down = made("headwater.codecs", CODECS, options.down_codec, options, error_feedback=False)
            encoded.append(EncodeWeights(down))
        return encoded

    def _make_world(self) -> World:
        options, median = self._options, float(np.median(self.rows_C))
        for name, most in (("cohort", options.cohort), ("buffer", options.buffer)):
            if most > len(self.rows_C):
                raise ConfigError(f"{name} = {most}: there are {len(self.rows_C)} clients, so take no more than that")

        if options.min_replies > self.answers and options.sampler != "poisson":
            raise ConfigError(
                f"min_replies = {options.min_replies}: a step is made of {self.answers} answers at most: lower it"
            )

        def load(client: ClientId) -> float:
            return 1.0 if options.local_steps else self._rows[client] / median

        closes = options.over_select and not options.buffer and options.sampler != "poisson"
        return World(options.only(ConditionOptions), options.seed, load, self.answers if closes else 0)

    def _make_attack(self, checkpoint: Checkpoint) -> Attack:
        """Return the attack; a backdoor's trigger is the rarest token, which turns rows to the first label."""
        options, known = self._options, checkpoint.featurizer.sizes.get("vocabulary_size")
        if options.attack == "backdoor" and known is None:
            raise ConfigError("attack = 'backdoor': its trigger is a token, and the model reads numbers")
        given = {"classes": len(checkpoint.labels), "trigger": known and known - 1}
        attack: Attack = made("headwater.attacks", ATTACKS, options.attack, options, **given)
        return attack
