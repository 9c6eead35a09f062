"""What a personalized federation is made of, beside the pieces of any other."""

from __future__ import annotations

from typing import Protocol

from headwater.federated.protocols import Client, Instruction, Update, UpdateTransform
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
