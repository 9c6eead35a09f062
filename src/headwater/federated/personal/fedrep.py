"""FedRep: each client has its own last layers, which learn first."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headwater.federated.personal.fedper import FedPer


@dataclass
class FedRep(FedPer):
    """A shared representation under personal heads (Collins et al. 2021, arXiv:2102.07078, algorithm 1).

    In a round a client first fits its own parameters to the representation that it was sent, then the representation to
    them.

    Attributes:
        own_epochs: Passes over the client's rows in which only its own parameters learn.
    """

    own_epochs: int = 5

    def __post_init__(self) -> None:
        """Let the clients' own parameters learn first and by themselves."""
        self._train = replace(self.local, own=self.own, own_epochs=self.own_epochs)
