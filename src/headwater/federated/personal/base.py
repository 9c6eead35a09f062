"""What a personalized federation is made of, beside the pieces of any other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from headwater.federated.protocols import Client, ClientId, Instruction, Update, UpdateTransform
from headwater.weights import Weights


class Personalizer(UpdateTransform, Protocol):
    """A method after which each client has a model of its own: the clients' half, the server's half, and that model.

    What belongs to a client alone lies in its `Client.state`. The server's half is that of an `UpdateTransform`: a
    derived class overrides the moments it needs.
    """

    def start(self, weights: Weights) -> Weights:
        """Return the shared weights that the first round sends.

        Args:
            weights: Of the model that all begin with, those that learn.

        Raises:
            ConfigError: Nothing would be shared, or nothing be a client's own.
        """
        return weights

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train the shared weights and the client's own; return the update of the shared ones (a `ClientUpdate`)."""

    def shared(self, weights: Weights) -> Weights:
        """Return what a model takes of the shared weights whose client has nothing of its own."""
        return weights

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return the client's own model: all the weights that learn.

        Args:
            weights: The shared ones, after the last round.
            client: With what it has kept; it may never have taken part.
        """


def own_or_shared(
    own: Iterable[tuple[ClientId, Weights]], shared: Weights, diverged: list[ClientId]
) -> Iterator[tuple[ClientId, Weights]]:
    """Yield each client's own weights; one whose training has diverged keeps the shared ones.

    Args:
        own: What each has made of the shared weights, or of some of them.
        shared: Weights of these names.
        diverged: Who keeps the shared ones is added to it.
    """
    for client, weights in own:
        # Not only weights that aren't finite: from those whose squares float32 can't hold no finite answer may come.
        if all(bool(value.square().sum().isfinite()) for value in weights.values()):
            yield client, weights
        else:
            diverged.append(client)
            yield client, {name: shared[name].clone() for name in weights}
