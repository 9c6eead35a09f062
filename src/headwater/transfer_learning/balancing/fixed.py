"""The tasks count what the options say, from beginning to end."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.trainer import Objective
from headwater.transfer_learning.balancing.base import Balancer, Weighted


class Fixed(Balancer):
    """A weighted sum of the losses."""

    def objectives(self, tasks: Sequence[Objective]) -> Sequence[Objective]:
        """Return each task, weighted."""
        return [Weighted(task, weight) for task, weight in zip(tasks, self.start, strict=True)]
