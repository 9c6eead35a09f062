"""pFedMe: each client's own model is where a pull to the shared one and its own rows are in balance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from headwater.federated.client_updates import LocalTraining
from headwater.federated.methods.fedprox import FedProx
from headwater.federated.personal.base import Personalizer
from headwater.federated.personal.minibatches import Minibatches
from headwater.federated.protocols import Client, Instruction, Update
from headwater.weights import Weights, add_scaled


@dataclass
class PFedMe(Personalizer):
    """Personalization by Moreau envelopes (Dinh et al. 2020, arXiv:2006.08848, algorithm 1).

    The client's own model is theta(w) = argmin F(theta) + pull / 2 * |theta - w|^2. On each batch theta is approached
    by a few steps from w, and then w <- w - lr * pull * (w - theta). Nothing has to be kept: in the end theta(w) is
    found by passes over all the client's rows. The paper's beta is the server's learning rate.

    Attributes:
        local: How often a client steps, on how many rows, and the rate lr of w.
        pull: The paper's lambda.
        inner_steps: The paper's K, steps to theta on a batch.
        inner_lr: Their learning rate.
        seed: Of the run.
    """

    local: LocalTraining
    pull: float = 1.0
    inner_steps: int = 5
    inner_lr: float = 0.3
    seed: int = 0
    _inner: LocalTraining = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare the steps to theta."""
        self._inner = replace(
            self.local, steps=self.inner_steps, lr=self.inner_lr, lr_decay=1.0, methods=(FedProx(self.pull),)
        )

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Move w a step towards the thetas of some batches; send its change."""
        batches = Minibatches(self.local, instruction, client)
        w, total = instruction.weights, 0.0
        for step in range(batches.steps):
            towards = self._inner(batches.instruction(step, w), batches.client(step))
            w = add_scaled(w, towards.delta, self.local.lr_in(instruction.round) * self.pull)
            total += towards.metrics["loss"]
        delta = add_scaled(w, instruction.weights, -1.0)
        return Update(client.name, delta, len(client.examples), {"loss": total / batches.steps})

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return theta(w)."""
        passes = replace(self._inner, steps=self.local.steps)
        return add_scaled(weights, passes(Instruction(0, weights, self.seed), client).delta)
