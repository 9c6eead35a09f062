"""The outer loop: step after step over episodes; continues exactly where a killed run stopped."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np

from headwater import trainer
from headwater.errors import DataError
from headwater.metalearning.adaptation import Learner
from headwater.metalearning.episodes import Episodes
from headwater.metalearning.methods import Method
from headwater.metalearning.options import MetalearnOptions
from headwater.progress import Progress
from headwater.records import Curve
from headwater.resume_state import load_state, optimizer_tensors, restore_optimizer, save_state
from headwater.weights import Weights, add_to, load_weights, part, weights_of, zeros_like

_POINTS = 50
"""Of the curve, at most."""


class OuterLoop:
    """Moves a learner's shared weights by what episodes say.

    Args:
        method: In which direction each says to go.
        learner: Its model ends with the last step's weights.
        episodes: What is learned from.
        options: How many, and how fast.
        state_file: Where an interrupted run continues from; written every few seconds.
    """

    def __init__(
        self, method: Method, learner: Learner, episodes: Episodes, options: MetalearnOptions, state_file: Path | None
    ) -> None:
        self.method = method
        self.learner = learner
        self.episodes = episodes
        self.options = options
        self.state_file = state_file
        self.lr = options.outer_lr or method.outer_lr
        self.optimizer = method.optimizer(list(learner.shared().values()), self.lr)
        self.losses: list[float] = []
        """One an episode."""

    def run(self, progress: Progress) -> None:
        """Go over the episodes that are left.

        Raises:
            DataError: A loss became infinite or not a number.
        """
        self._restore()
        saved_at = time.monotonic()
        while len(self.losses) < self.options.episodes:
            self._step()
            progress.advance(len(self.losses), self.options.episodes, self.losses[-1])
            if time.monotonic() - saved_at > trainer.AUTOSAVE_SECONDS:
                self._save()
                saved_at = time.monotonic()
        self._save()

    def curve(self) -> Curve:
        """Return the loss by episode, means of equal parts."""
        parts = np.array_split(np.array(self.losses), min(_POINTS, len(self.losses)))
        ends = np.cumsum([len(one) for one in parts])
        return Curve(
            name="episode loss", x_label="episode", x=list(map(float, ends)), y=[float(p.mean()) for p in parts]
        )

    def _step(self) -> None:
        first = len(self.losses)
        numbers = range(first, min(first + self.options.meta_batch, self.options.episodes))
        shared = self.learner.shared()
        total: Weights = {}
        for number in numbers:
            direction, loss = self.method.direction(self.learner, self.episodes[number])
            if not math.isfinite(loss):
                raise DataError(f"the loss became {loss} in episode {number + 1}: lower --inner-lr or --outer-lr")
            total = total or zeros_like(direction)
            add_to(total, direction, 1 / len(numbers))
            self.losses.append(loss)
        for name, parameter in shared.items():
            parameter.grad = total[name].to(parameter.device)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * (1 - first / self.options.episodes)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _save(self) -> None:
        tensors = {f"now/{name}": value for name, value in weights_of(self.learner.model).items()}
        tensors |= {f"optimizer/{name}": value for name, value in optimizer_tensors(self.optimizer).items()}
        save_state(self.state_file, tensors, {"losses": self.losses})

    def _restore(self) -> None:
        loaded = load_state(self.state_file)
        if loaded is None:
            return
        tensors, facts = loaded
        load_weights(self.learner.model, part(tensors, "now/"))
        restore_optimizer(self.optimizer, part(tensors, "optimizer/"))
        self.losses = facts["losses"]
