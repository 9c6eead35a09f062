"""What a client does with the shared weights."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from headwater.data.batches import InOrder, Shuffler
from headwater.data.examples import Examples
from headwater.descent import sgd_step, sparse_embeddings
from headwater.federated.protocols import ClientId, Instruction, Update
from headwater.model import SequenceModel
from headwater.precision import Precision, precision
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
        clip: Largest L2 norm of a step's gradient; 0 doesn't clip.
        device: Where to compute.
        shuffle: Whether each epoch takes the rows in an order of its own, those of like length together. Without it
            the batches are made once.
        precision: ``"bfloat16"`` multiplies in that type; the weights stay float32.
    """

    model: SequenceModel
    task: Task
    epochs: int
    batch_size: int
    lr: float
    optimizer: Literal["sgd", "adamw"] = "sgd"
    clip: float = 0.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shuffle: bool = True
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        """Nothing is prepared yet."""
        self._prepared: dict[ClientId, tuple[Examples, InOrder]] = {}

    def __call__(self, instruction: Instruction, client: ClientId, examples: Examples) -> Update:
        """Train from the instruction's weights; return the difference."""
        load_weights(self.model, instruction.weights)
        self.model.zero_grad(set_to_none=True)  # whoever had the model before may have left some
        seed = client_seed(instruction.seed, instruction.round, client)
        if self.device.type == "cpu":  # `torch.manual_seed` would note a call stack for each absent kind of device
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        batches = self._batches(client, examples, seed)
        shared = {n: p for n, p in self.model.named_parameters() if n in instruction.weights}
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in shared)
        self.model.train()
        total = 0.0
        steps = self.epochs * batches.steps_per_epoch
        with precision(self.precision, self.device), self._descent(list(shared.values())) as descend:
            for step in range(steps):
                loss = self.task.loss(self.model, batches[step].to(self.device))
                loss.backward()  # type: ignore[no-untyped-call]
                descend()
                total += float(loss.detach())
        delta: Weights = {n: (p.detach().cpu() - instruction.weights[n]) for n, p in shared.items()}
        return Update(client, delta, len(examples), {"loss": total / steps})

    def _batches(self, client: ClientId, examples: Examples, seed: int) -> InOrder | Shuffler:
        if self.shuffle:
            return Shuffler(examples, self.batch_size, seed)
        rows, batches = self._prepared.get(client, (None, None))
        if batches is None or rows is not examples or batches.size != self.batch_size:
            batches = InOrder(examples, self.batch_size)
            self._prepared[client] = examples, batches
        return batches

    @contextmanager
    def _descent(self, parameters: Sequence[nn.Parameter]) -> Iterator[Callable[[], None]]:
        """Yield what takes a step by the gradients and clears them."""
        if self.optimizer == "adamw":
            yield self._adamw(parameters)
            return
        with sparse_embeddings(self.model):
            yield lambda: sgd_step(parameters, self.lr, self.clip)

    def _adamw(self, parameters: Sequence[nn.Parameter]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, fused=True)

        def step() -> None:
            if self.clip:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def client_seed(seed: int, round_number: int, client: ClientId) -> int:
    """Return a seed of its own for each client and round."""
    return zlib.crc32(f"{seed}/{round_number}/{client}".encode())
