"""The learning-rate finder: raise the rate step by step and watch the loss (Smith 2017, arXiv:1506.01186)."""

from __future__ import annotations

from collections.abc import Callable

from headwater.errors import DataError
from headwater.records import Curve


def lr_range_test(
    train_step: Callable[[float], float], *, low: float = 1e-5, high: float = 0.3, steps: int = 80
) -> Curve:
    """Raise the learning rate exponentially and record the smoothed loss, until that is three times its lowest.

    Args:
        train_step: Takes a step at a learning rate and returns its loss.
        low: The first rate.
        high: The last rate.
        steps: How many at most.

    Raises:
        DataError: The loss of the very first step isn't finite.
    """
    rates: list[float] = []
    losses: list[float] = []
    smooth = 0.0
    for step in range(steps):
        lr = low * (high / low) ** (step / (steps - 1))
        try:
            value = train_step(lr)
        except DataError:  # the loss is no longer finite
            if not losses:
                raise
            break
        smooth = 0.9 * smooth + 0.1 * value
        losses.append(smooth / (1 - 0.9 ** (step + 1)))
        rates.append(lr)
        if losses[-1] > 3 * min(losses):
            break
    return Curve(name="learning-rate finder", x_label="learning rate", x=rates, y=losses)


def suggest_lr(curve: Curve) -> float:
    """Return a tenth of the rate at which the loss was lowest: still falling, far from the edge.

    That is fastai's rule (`minimum`). Of a smoothed loss the lowest point comes late, so that much less is too near: on
    small targets a third of a decade chose rates at which fine-tuning lost.
    """
    lowest = min(range(len(curve.y)), key=curve.y.__getitem__)
    return curve.x[lowest] / 10
