"""SCAFFOLD: control variates take the clients' drift apart from the common direction."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from headwater.federated.client_updates import LocalMethod, LocalRound, add_gradient
from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights, add_scaled, zeros_like

_CONTROL = "scaffold/"


@dataclass
class Scaffold(LocalMethod, UpdateTransform):
    """Stochastic controlled averaging (Karimireddy et al. 2020, arXiv:1910.06378, algorithm 1, option II).

    A client's gradient is corrected by c - c_i, where c_i stands for its own mean gradient of its last round and c for
    that of all clients: y <- y - lr * (g - c_i + c). Updates are twice as large.

    Attributes:
        population: N, the number of clients.
    """

    population: int
    _control: Weights = field(default_factory=dict)

    corrects = True

    def on_instruct(self, instruction: Instruction) -> Instruction:
        """Send c."""
        control = self._control or zeros_like(instruction.weights)
        return replace(instruction, extra=instruction.extra | _named(control))

    def begin(self, local: LocalRound) -> None:
        """Prepare c - c_i."""
        control, own = self._controls(local)
        local.notes[_CONTROL] = add_scaled(control, own, -1.0)

    def correct(self, local: LocalRound) -> None:
        """Add c - c_i."""
        for name, value in local.notes[_CONTROL].items():
            add_gradient(local.shared[name], value)

    def finish(self, local: LocalRound, update: Update) -> Update:
        """Keep c_i+ = c_i - c + (x - y) / (K lr); send what it has changed by."""
        change = {
            name: -update.delta[name] / (local.steps * local.lr) - control
            for name, control in self._controls(local)[0].items()
        }
        own = add_scaled(self._controls(local)[1], change)
        local.client.state |= _named(own)
        return replace(update, delta=update.delta | _named(change))

    def added(self, weights: Weights) -> Weights:
        """Updates carry the change of c_i."""
        return _named(zeros_like(weights))

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Move c by the share of the clients that took part: c <- c + |S| / N * mean change."""
        change = {name: aggregate[_CONTROL + name] for name in instruction.weights}
        control = self._control or zeros_like(instruction.weights)
        self._control = add_scaled(control, change, replies / self.population)
        return {name: value for name, value in aggregate.items() if not name.startswith(_CONTROL)}

    def state(self) -> Weights:
        """Return c."""
        return dict(self._control)

    def restore(self, state: Weights) -> None:
        """Take up c."""
        self._control = dict(state)

    def _controls(self, local: LocalRound) -> tuple[Weights, Weights]:
        """Return c and c_i."""
        sent, state = local.instruction.extra, local.client.state
        control = {name: sent[_CONTROL + name] for name in local.shared}
        return control, {name: state.get(_CONTROL + name, zero) for name, zero in zeros_like(control).items()}


def _named(weights: Weights) -> Weights:
    return {_CONTROL + name: value for name, value in weights.items()}
