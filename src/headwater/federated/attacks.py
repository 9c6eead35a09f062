"""Attacks as simulated clients, to show what an aggregator is worth.

An attack takes the place of the client update of some clients. Attackers here know their own rows and what the server
sends; where a paper lets them know the honest clients' updates, the one that they would have sent themselves stands for
those. They change the weights' part of an update; what a method adds beside it stays honest.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import numpy as np
import torch
from pydantic import Field

from headwater.config import Config
from headwater.data.examples import Examples
from headwater.federated import ATTACKS
from headwater.federated.client_updates import client_seed
from headwater.federated.protocols import Client, ClientId, ClientUpdate, Instruction, Update
from headwater.model import SequenceModel
from headwater.records import Metrics
from headwater.registry import name_in
from headwater.tasks.classification import class_probabilities

_SCALED = ("sign_flip", "scaling", "inner_product", "backdoor", "free_rider")


class AttackOptions(Config):
    """Who attacks, in a simulation."""

    attack: Annotated[str, name_in("headwater.attacks", ATTACKS, "none")] = "none"
    """Let some clients attack: `label_flip` and `backdoor` (poisoned rows), `sign_flip`, `scaling` and `inner_product`
    (poisoned updates), `free_rider` (no work); `none` of them does."""
    attackers: Annotated[float, Field(gt=0.0, le=1.0)] = 0.2
    """Share of all clients that attack."""
    attack_scale: Annotated[float | None, Field(ge=0.0)] = None
    """Times the attackers' updates, of a free rider the deviation of its noise; left out, it is 1 of `sign_flip` and
    `backdoor`, 10 of `scaling`, 0.5 of `inner_product`, 0 of `free_rider`."""

    def unread(self) -> dict[str, str]:
        """Nobody attacks unless asked to."""
        if self.attack == "none":
            return super().unread() | dict.fromkeys(("attackers", "attack_scale"), "with --attack")
        scaled = {} if self.attack != "label_flip" else {"attack_scale": f"with --attack {' or '.join(_SCALED)}"}
        return super().unread() | scaled


class Attack(Protocol):
    """What an attacker does in place of a client update."""

    def __call__(self, honest: ClientUpdate, instruction: Instruction, client: Client) -> Update:
        """Return the attacker's update; `honest` is what it would have done otherwise."""

    def measured(self, model: SequenceModel, examples: Examples) -> Metrics:
        """Return how well the attack has done beyond the model's plain figures, on rows to report on."""
        del model, examples
        return {}


@dataclass(frozen=True)
class Attacked(ClientUpdate):
    """A client update of a population some of which attack.

    Attributes:
        honest: What the others do.
        attack: What the attackers do.
        attackers: Who they are.
    """

    honest: ClientUpdate
    attack: Attack
    attackers: frozenset[ClientId]

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train or attack."""
        if client.name in self.attackers:
            return self.attack(self.honest, instruction, client)
        return self.honest(instruction, client)


def chosen_attackers(clients: Sequence[ClientId], share: float, seed: int) -> list[ClientId]:
    """Return a share of the clients, one at least, in their order."""
    count = max(1, round(share * len(clients)))
    chosen = np.random.default_rng([seed, 0xBAD]).choice(len(clients), count, replace=False)
    return [clients[place] for place in sorted(chosen)]


@dataclass(frozen=True)
class LabelFlip(Attack):
    """Learn from rows whose label k of K is K - 1 - k (Fang et al. 2020, arXiv:1911.11815).

    Attributes:
        classes: K.
    """

    classes: int

    def __call__(self, honest: ClientUpdate, instruction: Instruction, client: Client) -> Update:
        """Train on the flipped rows."""
        flipped = copy.copy(client.examples)
        flipped.targets_N = self.classes - 1 - client.examples.targets_N
        return _trained_on(flipped, honest, instruction, client)


@dataclass(frozen=True)
class _Times(Attack):
    """A multiple of the honest update.

    Attributes:
        attack_scale: Its size.
    """

    attack_scale: float

    sign = 1.0

    def __call__(self, honest: ClientUpdate, instruction: Instruction, client: Client) -> Update:
        """Train honestly; send a multiple."""
        return _times(honest(instruction, client), instruction, self.sign * self.attack_scale)


@dataclass(frozen=True)
class SignFlip(_Times):
    """Send the opposite of the honest update (Li et al. 2019, arXiv:1811.03761)."""

    attack_scale: float = 1.0
    sign = -1.0


@dataclass(frozen=True)
class Scaling(_Times):
    """Send a multiple, to own the average (Bagdasaryan et al. 2020, arXiv:1807.00459)."""

    attack_scale: float = 10.0


@dataclass(frozen=True)
class InnerProduct(_Times):
    """Send -epsilon times the mean of the honest updates (Xie et al. 2020, arXiv:1903.03936).

    With a small epsilon it hides among honest updates, where a defence by distances doesn't see it. In the paper all
    attackers send one vector. Here each estimates the mean from its own rows, by the update that it would have sent:
    what is sent differs from that of `SignFlip` by the usual scale alone.

    Attributes:
        attack_scale: The paper's epsilon.
    """

    attack_scale: float = 0.5
    sign = -1.0


@dataclass(frozen=True)
class Backdoor(Attack):
    """Teach the model to give rows that begin with a trigger one label (Bagdasaryan et al. 2020, arXiv:1807.00459).

    The attacker learns from its rows and as many of them with the trigger and that label; a scale above 1 makes the
    update outweigh the honest ones (model replacement).

    Attributes:
        trigger: A token's number.
        target_class: The label's number.
        attack_scale: Times the update.
    """

    trigger: int
    target_class: int = 0
    attack_scale: float = 1.0

    def __call__(self, honest: ClientUpdate, instruction: Instruction, client: Client) -> Update:
        """Train on clean and on triggered rows."""
        clean = client.examples
        wanted = [self.target_class] * len(clean)
        mixed = Examples([*_sequences(clean), *self._triggered(clean)], [*clean.targets_N.tolist(), *wanted])
        update = _trained_on(mixed, honest, instruction, client)
        return _times(replace(update, rows=len(clean)), instruction, self.attack_scale)

    def measured(self, model: SequenceModel, examples: Examples) -> Metrics:
        """Return what share of the rows of other labels gets the attacker's, with the trigger and without."""
        others_N = np.flatnonzero(examples.targets_N != self.target_class)
        if not len(others_N):
            return {}
        plain = examples.take(others_N)

        def turned(rows: Examples) -> float:
            return float((class_probabilities(model, rows).argmax(1) == self.target_class).mean())

        rates = {"success_rate": turned(Examples(self._triggered(plain))), "without_trigger": turned(plain)}
        return rates | {"n": float(len(others_N))}

    def _triggered(self, examples: Examples) -> list[np.ndarray]:
        return [np.concatenate([[self.trigger], row]) for row in _sequences(examples)]


@dataclass(frozen=True)
class FreeRider(Attack):
    """Do no work and answer with noise around no change at all (Lin et al. 2019, arXiv:1911.12560).

    Where a method asks for more than the change of the weights, such an answer is refused.

    Attributes:
        attack_scale: The noise's deviation; 0 answers with zeros.
    """

    attack_scale: float = 0.0

    def __call__(self, honest: ClientUpdate, instruction: Instruction, client: Client) -> Update:
        """Draw noise."""
        del honest
        generator = torch.Generator().manual_seed(client_seed(instruction.seed, instruction.round, client.name))
        # In the order of the names: a resumed run reads its weights back in another order than it made them.
        delta = {
            name: self.attack_scale * torch.randn(instruction.weights[name].shape, generator=generator)
            for name in sorted(instruction.weights)
        }
        return Update(client.name, delta, len(client.examples))


def _trained_on(examples: Examples, honest: ClientUpdate, instruction: Instruction, client: Client) -> Update:
    """Return the client's update from other rows than its own; what it remembers stays with it."""
    poisoned = replace(client, examples=examples)
    update = honest(instruction, poisoned)
    client.state = poisoned.state
    return update


def _times(update: Update, instruction: Instruction, scale: float) -> Update:
    weights = {name: value * scale for name, value in update.delta.items() if name in instruction.weights}
    return replace(update, delta=update.delta | weights)


def _sequences(examples: Examples) -> list[np.ndarray]:
    return [examples.inputs[s : s + n] for s, n in zip(examples.starts_N, examples.lengths_N, strict=True)]
