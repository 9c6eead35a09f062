"""What keeps a transfer close to its source, or to what transfers well: each composes with the methods that train.

Shapes: B batch, T time, H features of the states, K classes, F pooled features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from headwater.data.batches import Batch
from headwater.data_parallel import Share
from headwater.model import SequenceModel
from headwater.regularizers import anchor, spectral_shrinkage
from headwater.tasks.classification import Classification, PooledLinear
from headwater.trainer import Objective


@dataclass
class Anchor(Objective):
    """An objective: parameters are pulled towards weights of the same names.

    Attributes:
        parameters: Those that are frozen in a step don't count.
        to: Where they are pulled.
        strength: See `regularizers.anchor`.
    """

    parameters: Mapping[str, nn.Parameter]
    to: Mapping[str, Tensor]
    strength: float
    steps_per_epoch: int = 1

    def losses(self, step: int, share: Share) -> Iterator[Tensor]:
        """Yield the pull, which has no rows to share: the first share takes it."""
        del step
        learning = {name: value for name, value in self.parameters.items() if value.requires_grad}
        if learning and share.number == 0:
            yield anchor(learning, self.to, self.strength)


class ShrunkClassification(Classification):
    """Classification with batch spectral shrinkage of what the linear layer reads."""

    shrinkage: float
    """Times the square of the smallest singular value of the batch's features."""

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Return the mean cross entropy and the shrinkage."""
        head = model.head
        assert isinstance(head, PooledLinear)  # noqa: S101 - what this task's models have
        pooled_BF = model.encoder.pooled(batch.inputs, batch.lengths_B, head.pooling)
        loss = F.cross_entropy(head.logits(pooled_BF).float(), batch.targets_B)
        # A frozen encoder can't follow, a broken one is told; of one row the smallest is the largest, too.
        if not (pooled_BF.requires_grad and loss.isfinite() and len(pooled_BF) > 1):
            return loss
        return loss + self.shrinkage * spectral_shrinkage(pooled_BF)
