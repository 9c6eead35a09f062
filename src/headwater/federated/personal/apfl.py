"""APFL: each client mixes the shared model with one of its own, and learns how much of each."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from headwater.data.batches import Batch
from headwater.federated.client_updates import LocalMethod, LocalRound, LocalTraining
from headwater.federated.personal.base import Personalizer
from headwater.federated.protocols import Client, Instruction, Update
from headwater.model import SequenceModel
from headwater.tasks import Task
from headwater.weights import Weights, load_weights

_OWN, _MIXING = "apfl/own/", "apfl/mixing"


@dataclass
class Apfl(Personalizer):
    """Adaptive personalized federated learning (Deng et al. 2020, arXiv:2003.13461, algorithm 1), for plain descent.

    The client uses the mixture m = a v + (1 - a) w. On each batch w learns as it would alone, and v and the weight a
    descend by the gradient of the mixture's loss: a v's, and <v - w, .> (equation 10).

    Attributes:
        local: How a client trains w.
        mixing: What the share a of its own model begins with.
    """

    local: LocalTraining
    mixing: float = 0.5

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train w, v and a; send w."""
        v, mixing = self._kept(instruction.weights, client)
        return replace(self.local, methods=(_Mixture(self.local, v, mixing),))(instruction, client)

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return the mixture with the shared weights."""
        v, mixing = self._kept(weights, client)
        return {name: torch.lerp(value, v[name], mixing) for name, value in weights.items()}

    def _kept(self, weights: Weights, client: Client) -> tuple[Weights, float]:
        """Return v and a; a client that has none begins with the shared weights."""
        mixing = client.state.get(_MIXING, torch.tensor(self.mixing))
        return {name: client.state.get(_OWN + name, value) for name, value in weights.items()}, float(mixing)


@dataclass
class _Mixture(LocalMethod):
    """Steps of v and a beside those of w, in one round of a client."""

    local: LocalTraining
    v: Weights
    mixing: float

    def begin(self, local: LocalRound) -> None:
        """Set up a second model, for the mixture."""
        self._model = copy.deepcopy(local.model)
        self._mixed = {name: p for name, p in self._model.named_parameters() if name in local.shared}
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(name in self._mixed)
        self._v = {name: self.v[name].to(p.device, copy=True) for name, p in self._mixed.items()}

    def loss(self, local: LocalRound, batch: Batch | None) -> Tensor | None:
        """Take the step of v and a on w's batch; w's own loss stays as it is."""
        assert batch is not None  # noqa: S101 - no streams, say the options
        load_weights(self._model, {n: torch.lerp(w.detach(), self._v[n], self.mixing) for n, w in local.shared.items()})
        gradients = _gradients(self._model.train(), self._mixed, self.local.task, batch, self.local.clip)
        slope = sum(float(torch.sum((self._v[n] - local.shared[n].detach()) * g)) for n, g in gradients.items())
        for name, gradient in gradients.items():
            self._v[name].sub_(gradient, alpha=local.lr * self.mixing)
        self.mixing = min(1.0, max(0.0, self.mixing - local.lr * slope))
        return None

    def finish(self, local: LocalRound, update: Update) -> Update:
        """Keep v and a."""
        local.client.state |= {_OWN + name: value.cpu() for name, value in self._v.items()}
        local.client.state[_MIXING] = torch.tensor(self.mixing)
        return update


def _gradients(model: SequenceModel, by: dict[str, nn.Parameter], task: Task, batch: Batch, clip: float) -> Weights:
    model.zero_grad(set_to_none=True)
    task.loss(model, batch).backward()  # type: ignore[no-untyped-call]
    if clip:
        torch.nn.utils.clip_grad_norm_(by.values(), clip)
    return {name: p.grad for name, p in by.items() if p.grad is not None}
