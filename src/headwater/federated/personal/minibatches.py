"""A client's minibatches, for methods that take several steps on each."""

from __future__ import annotations

from dataclasses import replace

from headwater.data.batches import Shuffler
from headwater.federated.client_updates import LocalTraining, client_seed
from headwater.federated.protocols import Client, Instruction
from headwater.weights import Weights


class Minibatches:
    """Each minibatch as if it were all that the client has, so that a `LocalTraining` works on it.

    Args:
        local: How large they are, and how many steps a round has.
        instruction: Of the round.
        client: Whose rows.
    """

    def __init__(self, local: LocalTraining, instruction: Instruction, client: Client) -> None:
        self._instruction, self._client = instruction, client
        self._seed = client_seed(instruction.seed, instruction.round, client.name)
        self._batches = Shuffler(client.examples, local.batch_size, self._seed)
        self.steps = local.steps_for(client, self._batches.steps_per_epoch)

    def client(self, batch: int) -> Client:
        """Return the client with a minibatch's rows only."""
        return Client(self._client.name, self._client.examples.take(self._batches.rows(batch)))

    def instruction(self, batch: int, weights: Weights) -> Instruction:
        """Return the instruction to go on from these weights, with a seed of its own."""
        return replace(self._instruction, weights=weights, seed=self._seed + batch)
