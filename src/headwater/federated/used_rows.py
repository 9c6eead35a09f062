"""Rows of an embedding that are averaged over just the clients that used them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights

_USED = "used/"


@dataclass(frozen=True)
class UsedRows(UpdateTransform):
    """A rare word's row moves as far as if the clients without the word had not been asked.

    The server sees for itself which rows have changed, so nothing more is sent. That takes an average as aggregator,
    and clients and codecs that leave the rows of unused tokens, and no others, as they are: a softmax over the
    embedding's rows, weight decay (AdamW), the corrections of SCAFFOLD and FedDyn, numbers of four bits or fewer,
    rotations, low rank and the largest or random numbers don't.

    Attributes:
        name: Of the embedding's weight (V, E).
    """

    name: str = "encoder.embedding.weight"

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Add which rows have changed, (V, 1)."""
        del instruction
        used = (update.delta[self.name] != 0).any(1, keepdim=True).float()
        return replace(update, delta=update.delta | {_USED + self.name: used})

    def added(self, weights: Weights) -> Weights:
        """Updates carry which rows have changed."""
        return {_USED + self.name: torch.zeros(len(weights[self.name]), 1)}

    def on_aggregate(self, aggregate: Weights, instruction: Instruction, replies: int) -> Weights:
        """Divide each row by the share of the clients, as they count, that have changed it."""
        del instruction, replies
        share = aggregate[_USED + self.name]
        rows = aggregate[self.name] / torch.where(share > 0, share, 1.0)
        rest = {name: value for name, value in aggregate.items() if name != _USED + self.name}
        return rest | {self.name: rows}
