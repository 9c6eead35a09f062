"""Per-FedAvg: a shared model from which a few steps lead to each client's own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from headwater.federated.client_updates import LocalTraining
from headwater.federated.personal.base import Personalizer
from headwater.federated.personal.minibatches import Minibatches
from headwater.federated.protocols import Client, Instruction, Update
from headwater.weights import Weights, add_scaled


@dataclass
class PerFedAvg(Personalizer):
    """Personalized federated averaging (Fallah et al. 2020, arXiv:2002.07948, algorithm 1), the first-order kind.

    From w a few steps on one batch lead to w'; w then descends by the gradient at w' on another one. The paper takes
    one step; its factor with the Hessian is left out (FO; the Hessian-free kind approximates it). In the end a client's
    own model is found by as many steps from w.

    Attributes:
        local: How often a client steps, on how many rows, and the paper's beta.
        inner_steps: Steps from w to w'.
        inner_lr: The paper's alpha.
        seed: Of the run.
    """

    local: LocalTraining
    inner_steps: int = 5
    inner_lr: float = 0.3
    seed: int = 0
    _inner: LocalTraining = field(init=False, repr=False)
    _outer: LocalTraining = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Prepare both kinds of steps."""
        self._inner = replace(self.local, steps=self.inner_steps, lr=self.inner_lr, lr_decay=1.0)
        self._outer = replace(self.local, steps=1)

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Descend by the gradients where a few steps lead; send the change."""
        batches = Minibatches(self.local, instruction, client)
        w, total = instruction.weights, 0.0
        for step in range(batches.steps):
            first, second = 2 * step, 2 * step + 1
            adapted = add_scaled(w, self._inner(batches.instruction(first, w), batches.client(first)).delta)
            descent = self._outer(batches.instruction(second, adapted), batches.client(second))
            w = add_scaled(w, descent.delta)
            total += descent.metrics["loss"]
        delta = add_scaled(w, instruction.weights, -1.0)
        return Update(client.name, delta, len(client.examples), {"loss": total / batches.steps})

    def personal(self, weights: Weights, client: Client) -> Weights:
        """Return where a few steps on the client's rows lead."""
        return add_scaled(weights, self._inner(Instruction(0, weights, self.seed), client).delta)
