"""FedDyn: each client's objective is bent so that its minimum is that of all."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwater.federated.client_updates import LocalMethod, LocalRound, add_gradient
from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights, add_scaled, zeros_like

_GRADIENT = "feddyn/"


@dataclass
class FedDyn(LocalMethod, UpdateTransform):
    """Dynamic regularization (Acar et al. 2021, arXiv:2111.04263, algorithm 1).

    The client minimizes F(w) - <g_i, w> + dyn / 2 * |w - w_t|^2, where g_i stands for its gradient where it ended last.
    The server's step goes from the average of the clients' weights against h, the mean of what they have moved so far.

    Attributes:
        population: m, the number of clients.
        dyn: The paper's alpha.
    """

    population: int
    dyn: float = 0.1
    _h: Weights = field(default_factory=dict)

    corrects = True

    def correct(self, local: LocalRound) -> None:
        """Add -g_i + dyn * (w - w_t)."""
        for name, parameter in local.shared.items():
            if (own := local.client.state.get(_GRADIENT + name)) is not None:
                add_gradient(parameter, own, -1.0)
            add_gradient(parameter, parameter.detach() - local.instruction.weights[name].to(parameter.device), self.dyn)

    def finish(self, local: LocalRound, update: Update) -> Update:
        """Keep g_i <- g_i - dyn * (w - w_t)."""
        zeros = zeros_like(local.instruction.weights)
        own = {name: local.client.state.get(_GRADIENT + name, zero) for name, zero in zeros.items()}
        moved = add_scaled(own, update.delta, -self.dyn)
        local.client.state |= {_GRADIENT + name: value for name, value in moved.items()}
        return update

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Move h by the share of the clients that took part, and the average by -h / dyn."""
        delta = {name: aggregate[name] for name in instruction.weights}
        h = self._h or zeros_like(delta)
        self._h = add_scaled(h, delta, -self.dyn * replies / self.population)
        return aggregate | add_scaled(delta, self._h, -1 / self.dyn)

    def state(self) -> Weights:
        """Return h."""
        return dict(self._h)

    def restore(self, state: Weights) -> None:
        """Take up h."""
        self._h = dict(state)
