"""Learning rates by step, as a share of the peak: functions of the step, counted from 0, and the number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable


def one_cycle(step: int, total: int, *, warm_up: float = 0.25, start: float = 0.04, end: float = 1e-3) -> float:
    """Linear up, cosine down (Smith 2018, arXiv:1803.09820)."""
    peak = max(1, round(total * warm_up))
    if step < peak:
        return start + (1 - start) * step / peak
    return end + (1 - end) * (1 + math.cos(math.pi * (step - peak) / max(1, total - peak))) / 2


def slanted_triangular(step: int, total: int, *, cut_fraction: float = 0.1, ratio: float = 32.0) -> float:
    """Steeply up, slowly down to 1 / `ratio`, both linear (Howard and Ruder 2018, arXiv:1801.06146, equation 3)."""
    cut = max(1, int(total * cut_fraction))
    share = step / cut if step < cut else 1 - (step - cut) / max(1, total - cut)
    return (1 + share * (ratio - 1)) / ratio


def constant(step: int, total: int) -> float:
    """Return the peak, always."""
    del step, total
    return 1.0


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "one_cycle": one_cycle,
    "slanted": slanted_triangular,
    "constant": constant,
}
