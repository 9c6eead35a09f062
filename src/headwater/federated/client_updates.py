"""What a client does with the shared weights."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import torch

from headwater.data.batches import Shuffler
from headwater.data.examples import Examples
from headwater.federated.protocols import ClientId, Instruction, Update
from headwater.model import SequenceModel
from headwater.tasks import Task
from headwater.weights import Weights, load_weights


@dataclass
class LocalTraining:
    """Some epochs on the client's own rows.

    Attributes:
        model: Worked on in place; the weights that are not shared stay as they are.
        task: What to learn.
        epochs: Passes over the client's rows.
        batch_size: Rows a step.
        lr: Learning rate.
        optimizer: ``"sgd"`` (no momentum) or ``"adamw"`` (its moments begin anew in each round).
        clip: Largest L2 norm of a step's gradient.
        device: Where to compute.
    """

    model: SequenceModel
    task: Task
    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adamw"]
    clip: float
    device: torch.device

    def __call__(self, instruction: Instruction, client: ClientId, examples: Examples) -> Update:
        """Train from the instruction's weights; return the difference."""
        load_weights(self.model, instruction.weights)
        seed = client_seed(instruction.seed, instruction.round, client)
        torch.manual_seed(seed)
        batches = Shuffler(examples, self.batch_size, seed)
        shared = {n: p for n, p in self.model.named_parameters() if n in instruction.weights}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in shared)
        make = torch.optim.SGD if self.optimizer == "sgd" else torch.optim.AdamW
        optimizer = make(shared.values(), lr=self.lr, fused=True)
        self.model.train()
        total = 0.0
        for step in range(self.epochs * batches.steps_per_epoch):
            loss = self.task.loss(self.model, batches[step].to(self.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(shared.values(), self.clip)
            optimizer.step()
            total += float(loss.detach())
        delta: Weights = {n: (p.detach().cpu() - instruction.weights[n]) for n, p in shared.items()}
        return Update(client, delta, len(examples), {"loss": total / (self.epochs * batches.steps_per_epoch)})


def client_seed(seed: int, round_number: int, client: ClientId) -> int:
    """Return a seed of its own for each client and round."""
    return zlib.crc32(f"{seed}/{round_number}/{client}".encode())
