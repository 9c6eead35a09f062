"""Aggregators that bound how far one update can pull."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from headwater.federated.aggregators.averages import Mean
from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights, add_scaled, add_to, clipped, zeros_like


@dataclass(frozen=True)
class NormBound(Mean, UpdateTransform):
    """The mean of updates that are scaled down to an L2 norm (Sun et al. 2019, arXiv:1911.07963).

    Attributes:
        norm_bound: The paper's M.
    """

    norm_bound: float = 0.5

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Scale down."""
        del instruction
        return replace(update, delta=clipped(update.delta, self.norm_bound))


@dataclass
class CenteredClipping(UpdateTransform):
    """Updates clipped around the last aggregate (Karimireddy et al. 2021, arXiv:2012.10333, equation CC).

    One iteration a round: v <- v + mean of (x_i - v) min(1, tau / |x_i - v|), where v is the last round's. The paper's
    clients send their momentum; here a client's update, a sum over its steps, stands for it.

    Attributes:
        clip_radius: The paper's tau.
    """

    clip_radius: float = 0.5
    _center: Weights = field(default_factory=dict)
    _made: Weights = field(default_factory=dict)

    def __call__(self, updates: Iterable[Update], like: Weights) -> Weights:
        """Combine updates as they come; nobody's are no direction."""
        center = self._center or zeros_like(like)
        total, count = zeros_like(like), 0
        for update in updates:
            add_to(total, clipped(add_scaled(update.delta, center, -1.0), self.clip_radius), 1.0)
            count += 1
        self._made = add_scaled(center, total, 1 / count) if count else {}
        return self._made or total

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Move the center: a round with too few replies doesn't come this far."""
        del instruction, replies
        self._center = self._made or self._center
        return aggregate

    def state(self) -> Weights:
        """Return the center."""
        return dict(self._center)

    def restore(self, state: Weights) -> None:
        """Take up the center."""
        self._center = dict(state)
