"""What a client does with the shared weights."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from headwater.data.batches import Batch, InOrder, Shuffler
from headwater.data_parallel import Share
from headwater.descent import sgd_step, sparse_embeddings
from headwater.federated.protocols import Client, ClientId, Instruction, Update
from headwater.model import SequenceModel
from headwater.precision import Precision, precision
from headwater.tasks import Task
from headwater.tasks.language_modeling import LanguageModeling, StreamObjective
from headwater.weights import Weights, load_weights

OWN = "own/"
"""How the names begin of a client's own weights in its state."""


@dataclass
class LocalRound:
    """A client's training in a round, as the methods see it that change it.

    Attributes:
        model: The model; it begins with the instruction's weights.
        instruction: What the server asked.
        client: Whose training.
        shared: The parameters that are sent, by name.
        lr: Learning rate of this round.
        steps: Steps of this round.
        notes: What a method has to remember until the round's end.
    """

    model: SequenceModel
    instruction: Instruction
    client: Client
    shared: dict[str, nn.Parameter]
    lr: float
    steps: int
    notes: dict[str, Any] = field(default_factory=dict)


class LocalMethod(Protocol):
    """What a method changes in the clients' training: a derived class overrides the moments it needs.

    Its server's half, if it has one, is an `UpdateTransform`; the same object may be both.
    """

    corrects: ClassVar[bool] = False
    """Whether `correct` does something: then gradients are dense."""

    def begin(self, local: LocalRound) -> None:
        """Prepare; the model holds the instruction's weights."""
        del local

    def loss(self, local: LocalRound, batch: Batch | None) -> Tensor | None:
        """Return what is added to a batch's loss; there is no batch where a stream is read window by window."""
        del local, batch
        return None

    def correct(self, local: LocalRound) -> None:
        """Change the gradients, which are clipped already, before a step."""
        del local

    def finish(self, local: LocalRound, update: Update) -> Update:
        """Change the update, and what the client remembers; the model holds what was learned."""
        del local
        return update


@dataclass
class LocalTraining:
    """Some epochs on the client's own rows.

    Attributes:
        model: Worked on in place; the weights that are neither shared nor the client's own stay as they are.
        task: What to learn. A language model with a mean window (`bptt`) reads the client's rows as streams.
        epochs: Passes over the client's rows.
        batch_size: Rows a step; of streams, how many are read side by side.
        lr: Learning rate.
        optimizer: ``"sgd"`` (no momentum) or ``"adamw"`` (its moments begin anew in each round).
        clip: Largest L2 norm of a step's gradient; 0 doesn't clip.
        device: Where to compute.
        shuffle: Whether each epoch takes the rows in an order of its own, those of like length together.
        precision: ``"bfloat16"`` multiplies in that type; the weights stay float32.
        steps: How many, in place of `epochs`; 0 goes by those.
        methods: What changes the training.
        own: How the names begin of the parameters that are each client's own: they learn with the others, stay at
            home and are never sent (FedPer; Arivazhagan et al. 2019, arXiv:1912.00818).
        own_epochs: Passes in which only a client's own parameters learn; the shared ones then learn alone (FedRep;
            Collins et al. 2021, arXiv:2102.07078). With 0 they learn together.
        carry: Whether a stream's state goes on from window to window, within a client's round: it begins anew in the
            next one and is never sent. Without it each window begins from zeros.
        lr_decay: Times the learning rate from each round to the next.
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
    steps: int = 0
    methods: Sequence[LocalMethod] = ()
    own: tuple[str, ...] = ()
    own_epochs: int = 0
    carry: bool = True
    lr_decay: float = 1.0

    def __post_init__(self) -> None:
        """Remember what a client's own weights begin with."""
        parameters = self.model.named_parameters()
        self._own = {n: p.detach().cpu().clone() for n, p in parameters if self.own and n.startswith(self.own)}

    def __call__(self, instruction: Instruction, client: Client) -> Update:
        """Train from the instruction's weights; return the difference."""
        shared = {n: p for n, p in self.model.named_parameters() if n in instruction.weights}
        own = {n: p for n, p in self.model.named_parameters() if n in self._own}
        load_weights(self.model, instruction.weights | self.own_of(client))
        self.model.zero_grad(set_to_none=True)  # whoever had the model before may have left some
        seed = client_seed(instruction.seed, instruction.round, client.name)
        if self.device.type == "cpu":  # `torch.manual_seed` would note a call stack for each absent kind of device
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        batches = self._batches(client, seed)
        steps = self.steps_for(client, batches.steps_per_epoch)
        local = LocalRound(self.model, instruction, client, shared, self.lr_in(instruction.round), steps)
        for method in self.methods:
            method.begin(local)
        total = 0.0
        with precision(self.precision, self.device):
            if own and self.own_epochs:
                self._descend(
                    own,
                    local,
                    batches,
                    range(max(1, math.ceil(client.work * self.own_epochs * batches.steps_per_epoch))),
                    (),
                )
                total = self._descend(shared, local, batches, range(steps), self.methods)
            else:
                total = self._descend(shared | own, local, batches, range(steps), self.methods)
        client.state |= {OWN + name: parameter.detach().cpu().clone() for name, parameter in own.items()}
        delta: Weights = {n: (p.detach().cpu() - instruction.weights[n]) for n, p in shared.items()}
        update = Update(client.name, delta, len(client.examples), {"loss": total / steps})
        for method in self.methods:
            update = method.finish(local, update)
        return update

    def steps_for(self, client: Client, steps_per_epoch: int) -> int:
        """Return the steps that a client takes in a round."""
        return max(1, math.ceil(client.work * (self.steps or self.epochs * steps_per_epoch)))

    def lr_in(self, round_number: int) -> float:
        """Return the learning rate of a round; the first is 1."""
        return self.lr * self.lr_decay ** max(0, round_number - 1)

    def own_of(self, client: Client) -> Weights:
        """Return the client's own weights: what it keeps, or what all begin with."""
        return {name: client.state.get(OWN + name, start) for name, start in self._own.items()}

    def _descend(
        self,
        learning: dict[str, nn.Parameter],
        local: LocalRound,
        batches: _Batches | StreamObjective,
        steps: range,
        methods: Sequence[LocalMethod],
    ) -> float:
        """Take steps with some of the parameters; return the sum of the losses."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in learning)
        self.model.train()
        total = 0.0
        with self._stepping(list(learning.values()), local, methods) as take_step:
            for step in steps:
                loss, batch, share = self._loss(batches, step)
                total += float(loss.detach())
                loss = loss * share if share != 1.0 else loss
                for method in methods:
                    if (more := method.loss(local, batch)) is not None:
                        loss = loss + more
                loss.backward()  # type: ignore[no-untyped-call]
                take_step()
        return total

    def _loss(self, batches: _Batches | StreamObjective, step: int) -> tuple[Tensor, Batch | None, float]:
        """Return the loss of a step, its batch if there is one, and by how much it counts."""
        if isinstance(batches, StreamObjective):
            (loss,) = batches.losses(step, Share())
            return loss, None, batches.lr_factor(step)
        batch = batches[step].to(self.device)
        return self.task.loss(self.model, batch), batch, 1.0

    def _batches(self, client: Client, seed: int) -> _Batches | StreamObjective:
        examples = client.examples
        if isinstance(self.task, LanguageModeling) and self.task.bptt:
            streams = min(self.batch_size, len(examples.inputs) + len(examples))
            return StreamObjective(self.model, self.task, examples, streams, seed, self.device, carry=self.carry)
        return Shuffler(examples, self.batch_size, seed) if self.shuffle else InOrder(examples, self.batch_size)

    @contextmanager
    def _stepping(
        self, parameters: Sequence[nn.Parameter], local: LocalRound, methods: Sequence[LocalMethod]
    ) -> Iterator[Callable[[], None]]:
        """Yield what takes a step by the gradients and clears them."""
        corrected = [method for method in methods if method.corrects]
        adamw = torch.optim.AdamW(parameters, lr=local.lr, fused=True) if self.optimizer == "adamw" else None
        if adamw is None and not corrected:
            with sparse_embeddings(self.model):
                yield lambda: sgd_step(parameters, local.lr, self.clip)
            return

        def step() -> None:
            if self.clip:
                torch.nn.utils.clip_grad_norm_(parameters, self.clip)
            for method in corrected:
                method.correct(local)
            if adamw:
                adamw.step()
                adamw.zero_grad(set_to_none=True)
            else:
                sgd_step(parameters, local.lr, 0.0)

        yield step


_Batches = InOrder | Shuffler


def add_gradient(parameter: nn.Parameter, value: Tensor, scale: float = 1.0) -> None:
    """Add a scaled value to a parameter's gradient."""
    value = value.to(parameter.device)
    parameter.grad = value * scale if parameter.grad is None else parameter.grad.add_(value, alpha=scale)


def client_seed(seed: int, round_number: int, client: ClientId) -> int:
    """Return a seed of its own for each client and round."""
    return zlib.crc32(f"{seed}/{round_number}/{client}".encode())
