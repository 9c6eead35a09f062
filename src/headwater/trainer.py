"""Fit a model, watch the held-out rows, keep the best weights, continue exactly where a killed run stopped.

Every random choice is a pure function of the seed and the step, or comes from torch's generator, whose state is
saved: so a resumed run ends with the same bits as one never interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headwater.config import Config, cores
from headwater.data.batches import Shuffler, batch_of
from headwater.data.examples import Examples
from headwater.data_parallel import DataParallel, Share
from headwater.errors import ConfigError, DataError
from headwater.lr_finder import lr_range_test, suggest_lr
from headwater.model import SequenceModel
from headwater.precision import Precision, precision
from headwater.progress import Progress
from headwater.records import Curve
from headwater.resume_state import load_state, optimizer_tensors, restore_optimizer, save_state
from headwater.schedules import SCHEDULES
from headwater.tasks.base import Task
from headwater.weights import Weights, load_weights, part, weights_of
from headwater.workers import can_fork

AUTOSAVE_SECONDS = 10.0
"""How much work a kill can cost at most; saving more often would slow small runs down."""


ALWAYS, NEVER = range(1_000_000), range(0)
"""Epochs of a group that learns all the time, and of one that stays frozen."""


class TrainOptions(Config):
    """How a model is fitted."""

    epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the training rows at most; 0 chooses by their number: enough for about 400 steps, 6 to 30."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows of a batch."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Batches a step: trains as one batch of all their rows would, in the memory of one of them."""
    lr: Annotated[float, Field(gt=0)] | Literal["auto"] = 3e-3
    """Peak learning rate; `auto` runs the learning-rate finder first."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """`adamw` (Loshchilov and Hutter 2019) or `sgd` with momentum 0.9."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    schedule: Literal["one_cycle", "slanted", "constant"] = "one_cycle"
    """`one_cycle` (Smith 2018): up over the first quarter, then down along a cosine; `slanted` (Howard and Ruder 2018):
    up over the first tenth, then straight down to a 32nd; or `constant`."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of the gradient."""
    patience: Annotated[int, Field(ge=0)] = 3
    """Stop after this many epochs without a better held-out figure, not counting those before the last layer thaws;
    0 never stops early."""
    precision: Precision = "float32"
    """`bfloat16` computes products in that type, an error where the processor can't; `auto` if it can."""
    processes: Annotated[int, Field(ge=0)] = 1
    """Processes that the rows of a step are spread over, one thread each; 0 takes one a core. Each draws its own
    dropout, so the bits depend on the number. On a machine with a GPU it is one."""

    @property
    def step_size(self) -> int:
        """Rows a step."""
        return self.batch_size * self.accumulate

    def processes_on(self, device: torch.device) -> int:
        """Return how many processes a step's rows are spread over."""
        return min(self.processes or cores(), self.step_size) if device.type == "cpu" and can_fork() else 1


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate and the epochs in which they learn.

    Attributes:
        prefixes: Parameter names begin with one of these.
        lr_factor: Times the peak learning rate.
        epochs: Those in which they learn, counted from 0; in the others they are frozen.
        decays: Whether weight decay pulls them to zero.
    """

    prefixes: tuple[str, ...]
    lr_factor: float = 1.0
    epochs: Container[int] = ALWAYS
    decays: bool = True


class Objective(Protocol):
    """Something to learn in a step."""

    steps_per_epoch: int

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield what adds up, over all shares, to the loss of a step.

        Each is asked for when the parameters hold the gradient of the last one.
        """

    def lr_factor(self, step: int) -> float:
        """Return the share of the learning rate that a step takes; the first of several objectives says it."""
        del step
        return 1.0

    def carried(self) -> dict[str, Tensor]:
        """Return what a step leaves to the next one beside the weights; a resumed run fills it again in place."""
        return {}


@dataclass
class TaskObjective(Objective):
    """A task over its own rows, with its own head if several tasks share an encoder."""

    model: SequenceModel
    task: Task
    examples: Examples
    batch_size: int
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Prepare the steps once."""
        self._steps = Shuffler(self.examples, self.batch_size * self.accumulate, self.seed)
        self.steps_per_epoch = self._steps.steps_per_epoch

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the loss of each batch of a step, by its part of the step's terms."""
        rows = self._steps.rows(step)
        own = share.of(rows)
        for start in range(0, len(own), self.batch_size):
            part = own[start : start + self.batch_size]
            loss = self.task.loss(self.model, batch_of(self.examples, part).to(self.device))
            yield loss * (self._terms(part) / self._terms(rows))

    def _terms(self, rows: np.ndarray) -> int:
        return self.task.terms(self.examples.lengths_N[rows])


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind; the model holds the best weights."""

    curves: list[Curve]
    best: dict[str, float]
    stopped: str
    notes: tuple[str, ...] = ()


def fit(
    model: SequenceModel,
    objectives: Sequence[Objective],
    evaluate: Callable[[], dict[str, float]],
    options: TrainOptions,
    *,
    best_by: tuple[str, bool] | None,
    seed: int,
    groups: Sequence[ParameterGroup] = (ParameterGroup(("",)),),
    trained: torch.nn.Module | None = None,
    state_file: Path | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a model to the sum of its objectives.

    Args:
        model: Changed in place; ends with the best weights.
        objectives: The first one's rows make an epoch; the others go round beside it.
        evaluate: Returns the held-out figures of the model as it is.
        options: How to fit.
        best_by: The figure that chooses the best epoch, and whether higher is better; None takes the last epoch.
        seed: Seeds dropout.
        groups: Learning rates and thawing by parameter names; a parameter belongs to the first group that fits.
        trained: What is optimized, if more than the model (several heads).
        state_file: Where an interrupted run continues from; written every few seconds.
        progress: Where to show how it goes.

    Raises:
        DataError: The loss or a weight became infinite or not a number.
        WorkerError: One of several processes has died.
    """
    trained = trained or model
    device = next(model.parameters()).device
    notes: list[str] = []
    if options.processes > options.processes_on(device) == 1:
        notes.append("--processes was ignored: on a machine with a GPU one process trains.")
    with precision(options.precision, device):
        lr, found = _rate(trained, objectives, groups, options, seed)
        if found:
            notes.append(f"The learning-rate finder chose {lr:.2g}.")
        run = _Run(trained, objectives, options, lr, groups, seed, state_file)
        torch.manual_seed(seed)
        run.restore()
        with run.gradients:
            while not run.done():
                _run_epoch(run, progress)
                figures = evaluate()
                run.finish_epoch(figures, _score(figures, best_by) if best_by else float(run.epoch))
                if progress:
                    progress.epoch_done(run.epoch, options.epochs, figures)
    if not all(bool(value.isfinite().all()) for value in run.best_weights.values()):
        raise DataError(f"the weights became infinite or not a number after {run.step} steps: lower --lr or --clip")
    if state_file:
        run.save()  # a stage that is killed in a later training doesn't begin this one again
    load_weights(trained, run.best_weights)
    return FitResult([*run.curves(), *found], run.best_figures, run.stopped, tuple(notes))


def _rate(
    trained: torch.nn.Module,
    objectives: Sequence[Objective],
    groups: Sequence[ParameterGroup],
    options: TrainOptions,
    seed: int,
) -> tuple[float, list[Curve]]:
    """Return the peak learning rate, and the finder's curve if it chose that."""
    if options.lr != "auto":
        return options.lr, []
    tested = _range_test(trained, objectives, groups, options, seed)
    lr = suggest_lr(tested)
    return lr, [tested.model_copy(update={"chosen": lr})]


def _score(figures: dict[str, float], best_by: tuple[str, bool]) -> float:
    name, higher_is_better = best_by
    return figures[name] if higher_is_better else -figures[name]


def _run_epoch(run: _Run, progress: Progress | None) -> None:
    run.thaw(run.epoch)
    while run.step < (run.epoch + 1) * run.steps_per_epoch:
        loss = run.train_step()
        if progress:
            progress.advance(run.step, run.steps_per_epoch * run.options.epochs, loss)
        run.autosave()


class _Run:
    """The state of a fit between two steps."""

    def __init__(
        self,
        trained: torch.nn.Module,
        objectives: Sequence[Objective],
        options: TrainOptions,
        lr: float,
        groups: Sequence[ParameterGroup],
        seed: int,
        state_file: Path | None,
    ) -> None:
        self.trained = trained
        self.objectives = objectives
        self.options = options
        self.lr = lr
        self.groups = groups
        self.state_file = state_file
        self.steps_per_epoch = objectives[0].steps_per_epoch
        self.settled = _last_change(groups, options.epochs)
        self.step = 0
        self.epoch = 0
        self.waited = 0
        self.best_score = -math.inf
        self.best_figures: dict[str, float] = {}
        self.best_weights: Weights = weights_of(trained)
        self.losses: list[float] = []
        self.history: list[dict[str, float]] = []
        self.stopped = ""
        self.optimizer = make_optimizer(trained, groups, options, lr)
        processes = options.processes_on(next(trained.parameters()).device)
        self.gradients = DataParallel(trained, self._gradient, processes, seed)
        self._saved_at = time.monotonic()

    def done(self) -> bool:
        """Return whether to stop, and remember why."""
        if self.epoch >= self.options.epochs:
            self.stopped = self.stopped or f"reached {self.options.epochs} epochs"
        elif self.options.patience and min(self.waited, self.epoch - self.settled) >= self.options.patience:
            self.stopped = f"no better held-out figure for {self.waited} epochs"
        return bool(self.stopped)

    def thaw(self, epoch: int) -> None:
        """Let those groups learn that do so in an epoch."""
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            for parameter in group["params"]:
                parameter.requires_grad_(epoch in settings.epochs)

    def train_step(self) -> float:
        """Take one step; return its loss."""
        total = self.steps_per_epoch * self.options.epochs
        scale = SCHEDULES[self.options.schedule](self.step, total) * self.objectives[0].lr_factor(self.step)
        for group, settings in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = self.lr * settings.lr_factor * scale
        value = self.gradients(self.step)
        if not math.isfinite(value):
            raise DataError(f"the loss became {value} at step {self.step}: lower --lr or --clip")
        torch.nn.utils.clip_grad_norm_([p for p in self.trained.parameters() if p.grad is not None], self.options.clip)
        self.optimizer.step()
        self.step += 1
        self.losses.append(value)
        return value

    def _gradient(self, step: int, share: Share) -> float:
        """Leave the gradient of a share of a step in the parameters; return the share's part of the loss."""
        self.trained.train()
        self.trained.zero_grad(set_to_none=True)
        total = 0.0
        for objective in self.objectives:
            for loss in objective.losses(step, share):
                loss.backward()  # type: ignore[no-untyped-call]
                total += float(loss.detach())
        return total

    def finish_epoch(self, figures: dict[str, float], score: float) -> None:
        """Compare with the best so far."""
        self.epoch += 1
        recent = self.losses[-self.steps_per_epoch :]
        self.history.append({"train loss": sum(recent) / len(recent)} | figures)
        if score > self.best_score:
            self.best_score, self.best_figures, self.waited = score, figures, 0
            self.best_weights = weights_of(self.trained)
        else:
            self.waited += 1

    def curves(self) -> list[Curve]:
        """Return the figures by epoch."""
        names = [name for name in (self.history[0] if self.history else {}) if name != "n"]
        epochs = [float(number + 1) for number in range(len(self.history))]
        return [
            Curve(
                name=name if name == "train loss" else f"valid {name.replace('_', ' ')}",
                x_label="epoch",
                x=epochs,
                y=[figures[name] for figures in self.history],
            )
            for name in names
        ]

    def autosave(self) -> None:
        """Save the state now and then."""
        if self.state_file and time.monotonic() - self._saved_at > AUTOSAVE_SECONDS:
            self.save()
            self._saved_at = time.monotonic()

    def save(self) -> None:
        """Write everything that the next step depends on."""
        tensors = {f"now/{name}": value for name, value in weights_of(self.trained).items()}
        tensors |= {f"best/{name}": value for name, value in self.best_weights.items()}
        tensors |= {f"carried/{name}": value for name, value in self._carried().items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        tensors["rng"] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors["rng_cuda"] = torch.cuda.get_rng_state()
        facts = {
            name: getattr(self, name)
            for name in ("step", "epoch", "waited", "best_score", "best_figures", "losses", "history")
        }
        save_state(self.state_file, tensors, facts)

    def restore(self) -> None:
        """Take up a saved state if there is one."""
        loaded = load_state(self.state_file)
        if loaded is None:
            return
        tensors, facts = loaded
        for name, value in facts.items():
            setattr(self, name, value)
        load_weights(self.trained, part(tensors, "now/"))
        self.best_weights = part(tensors, "best/")
        carried = self._carried()
        for name, value in part(tensors, "carried/").items():
            carried[name].copy_(value)
        restore_optimizer(self.optimizer, part(tensors, "optimizer/"))
        torch.set_rng_state(tensors["rng"])
        if "rng_cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng_cuda"])

    def _carried(self) -> dict[str, Tensor]:
        """Return what the objectives carry from step to step."""
        return {
            f"{number}/{name}": value
            for number, objective in enumerate(self.objectives)
            for name, value in objective.carried().items()
        }


def _last_change(groups: Sequence[ParameterGroup], epochs: int) -> int:
    """Return the epoch from which on the same groups learn in all that follow."""
    learning = [[epoch in group.epochs for group in groups] for epoch in range(epochs)]
    return max((epoch for epoch in range(1, epochs) if learning[epoch] != learning[epoch - 1]), default=0)


def make_optimizer(
    trained: torch.nn.Module, groups: Sequence[ParameterGroup], options: TrainOptions, lr: float
) -> torch.optim.Optimizer:
    """Return the optimizer; each parameter goes to the first group that fits its name.

    Raises:
        ConfigError: A group fits no parameter, or a parameter no group.
    """
    taken: list[list[Tensor]] = [[] for _ in groups]
    for name, parameter in trained.named_parameters():
        for number, group in enumerate(groups):
            if name.startswith(group.prefixes):
                taken[number].append(parameter)
                break
        else:
            raise ConfigError(f"the parameter {name!r} belongs to no group; groups begin with {groups}")
    for group, parameters in zip(groups, taken, strict=True):
        if not parameters:
            known = ", ".join(name for name, _ in trained.named_parameters())
            raise ConfigError(f"the group {group.prefixes} fits no parameter; there are: {known}")
    settings = [
        {"params": parameters, "lr": lr, "weight_decay": options.weight_decay if group.decays else 0.0}
        for group, parameters in zip(groups, taken, strict=True)
    ]
    if options.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=lr, momentum=0.9)
    # The fused kernel makes one pass over large embeddings where the default makes ten.
    return torch.optim.AdamW(settings, lr=lr, fused=True)


def _range_test(
    trained: torch.nn.Module,
    objectives: Sequence[Objective],
    groups: Sequence[ParameterGroup],
    options: TrainOptions,
    seed: int,
) -> Curve:
    """Return the learning-rate finder's curve; the weights are put back afterwards."""
    before = weights_of(trained)
    run = _Run(trained, objectives, options.model_copy(update={"schedule": "constant"}), 0.0, groups, seed, None)
    torch.manual_seed(seed)

    def train_step(lr: float) -> float:
        run.lr = lr
        return run.train_step()

    run.thaw(options.epochs - 1)  # the rate is for all that will learn, and what stays frozen must not help to find it
    try:
        with run.gradients:
            return lr_range_test(train_step)
    finally:
        load_weights(trained, before)
