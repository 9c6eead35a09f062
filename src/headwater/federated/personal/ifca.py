"""IFCA: several shared models; each client learns with the one that suits it best.

Shapes: M clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from headwater.federated.client_updates import LocalTraining
from headwater.federated.personal.base import Personalizer
from headwater.federated.protocols import Client, Instruction, Update
from headwater.weights import Weights, load_weights, part, zeros_like

_MEMBERS = "ifca/members"
_NOISE = 0.1
_BATCH = 64


@dataclass
class Ifca(Personalizer):
    """Iterative federated clustering (Ghosh et al. 2020, arXiv:2006.04088, algorithm 1, option II).

    The shared weights are those of M models, under `cluster0.`, `cluster1.` and so on. A client takes the one with the
    lowest loss on its rows, trains it and sends its update alone; the server steps each model along the mean of those
    who took it, which is zero where nobody did: such a model stays with plain averaging, as in the paper, and goes on
    by what a server optimizer keeps of earlier rounds. Nothing is kept at the clients. As the paper says, the models
    must begin apart: here each with noise of a tenth of each weight's spread.

    Attributes:
        local: How a client trains.
        clusters: The number of models.
        seed: Draws the noise.
    """

    local: LocalTraining
    clusters: int = 2
    seed: int = 0
    _members_M: torch.Tensor | None = field(default=None, repr=False)

    def start(self, weights: Weights) -> Weights:
        """Return the models, each a little beside the one given."""
        generator = torch.Generator().manual_seed(self.seed)
        return {
            _prefix(cluster) + name: value
            + _NOISE * value.std(correction=0) * torch.randn(value.shape, generator=generator)
            for cluster in range(self.clusters)
            for name, value in weights.items()
        }

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train the model that suits the client; send its update."""
        chosen = self.choice(instruction.weights, client)
        update = self.local(replace(instruction, weights=part(instruction.weights, _prefix(chosen))), client)
        return replace(update, delta={_prefix(chosen) + name: value for name, value in update.delta.items()})

    def choice(self, weights: Weights, client: Client) -> int:
        """Return the number of the model with the lowest loss on the client's rows; the first of equals."""
        model, losses = self.local.model, []
        for cluster in range(self.clusters):
            load_weights(model, part(weights, _prefix(cluster)))
            losses.append(self.local.task.count(model, client.examples, _BATCH).figures()["loss"])
        return losses.index(min(losses))

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Note which model the update is for; the others get nothing."""
        zeros = zeros_like(instruction.weights)
        members_M = torch.zeros(self.clusters)
        members_M[[cluster for cluster in range(self.clusters) if part(update.delta, _prefix(cluster))]] = 1.0
        if members_M.sum() != 1:
            raise ValueError(f"updates to {int(members_M.sum())} models, where one was to be trained")
        return replace(update, delta=zeros | update.delta | {_MEMBERS: members_M})

    def added(self, weights: Weights) -> Weights:
        """Updates say which model they are for."""
        del weights
        return {_MEMBERS: torch.zeros(self.clusters)}

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Divide each model's average by the share of those who took it."""
        del instruction, replies
        shares_M = aggregate[_MEMBERS]
        if bool(shares_M.any()):  # nobody may have answered
            self._members_M = shares_M
        return {
            _prefix(cluster) + name: value / share if share > 0 else value
            for cluster, share in enumerate(shares_M.tolist())
            for name, value in part(aggregate, _prefix(cluster)).items()
        }

    def state(self) -> Weights:
        """Return the shares of the last round."""
        return {} if self._members_M is None else {_MEMBERS: self._members_M}

    def restore(self, state: Weights) -> None:
        """Take up the shares of the last round."""
        self._members_M = state.get(_MEMBERS)

    def shared(self, weights: Weights) -> Weights:
        """Return the model that most were trained with in the last round."""
        most = 0 if self._members_M is None else int(self._members_M.argmax())
        return part(weights, _prefix(most))

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return the model that suits the client best."""
        return part(weights, _prefix(self.choice(weights, client)))


def _prefix(cluster: int) -> str:
    return f"cluster{cluster}."
