"""FedPer: each client has its own last layers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from headwater.errors import ConfigError
from headwater.federated.client_updates import LocalTraining
from headwater.federated.personal.base import Personalizer
from headwater.federated.protocols import Client, Instruction, Update
from headwater.weights import Weights


@dataclass
class FedPer(Personalizer):
    """Shared base layers and personal ones, which learn together (Arivazhagan et al. 2019, arXiv:1912.00818).

    Attributes:
        local: How a client trains.
        own: How the names begin of the parameters that are each client's own and never leave it.
    """

    local: LocalTraining
    own: tuple[str, ...] = ("head.",)
    _train: LocalTraining = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Keep the clients' own parameters out of what is sent."""
        self._train = replace(self.local, own=self.own)

    def start(self, weights: Weights) -> Weights:
        """Return the parameters that aren't a client's own."""
        names = [name for name, _ in self.local.model.named_parameters()]
        for prefix in self.own:
            found = [name for name in names if name.startswith(prefix)]
            if not found:
                raise ConfigError(f"own = {prefix!r}: no weights begin so; the model has {', '.join(names)}")
            if not weights.keys() >= set(found):
                raise ConfigError(f"own = {prefix!r}: these weights are frozen, so no client could learn its own")
        shared = {name: value for name, value in weights.items() if not name.startswith(self.own)}
        if not shared:
            raise ConfigError(f"own = {', '.join(self.own)}: nothing is left to share: freeze less, or own less")
        return shared

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train both parts; send the shared one."""
        return self._train(instruction, client)

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return the shared weights beside the client's own."""
        return weights | self._train.own_of(client)
