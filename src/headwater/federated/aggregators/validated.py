"""An aggregator that measures each client's weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from headwater.federated.aggregators.averages import Mean
from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights, add_scaled
from headwater.workers import one_thread

_ACCURACY = "validation_accuracy"


@dataclass(frozen=True)
class ByValidation(Mean, UpdateTransform):
    """A client counts by the accuracy of its weights on rows that the server holds: a softmax over the clients.

    In the manner of dynamic gradient aggregation (Dimitriadis et al. 2021, arXiv:2106.07578), which weights by the
    training loss. The server measures where it takes an update in, so nothing rests on what a client says of itself.

    Attributes:
        accuracy: Returns the accuracy of shared weights, 0 to 1; with several processes it is called in each.
        validation_temperature: So much more accuracy counts e times as much; at least 0.02, so that no weight vanishes
            in float32.
    """

    accuracy: Callable[[Weights], float]
    validation_temperature: float = 0.05

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Measure."""
        with one_thread():
            accuracy = self.accuracy(add_scaled(instruction.weights, update.delta))
        return replace(update, metrics={**update.metrics, _ACCURACY: accuracy})

    def weight(self, update: Update) -> float:
        """Return what the client counts; the sum is taken out of the average."""
        return math.exp((update.metrics[_ACCURACY] - 1) / self.validation_temperature)
