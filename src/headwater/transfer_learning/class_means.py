"""Transfer without training: the frozen encoder, and each class's mean as the head."""

from __future__ import annotations

import torch

from headwater.tasks.classification import PooledLinear, pooled_states
from headwater.tasks.prototypes import prototype_head
from headwater.transfer_learning.job import Job


def prototypes(job: Job) -> None:
    """Take the head from the means of the classes' pooled states (Snell et al. 2017, arXiv:1703.05175)."""
    job.check_input_is_known()
    examples = job.splits.train.encode(job.featurizer, job.splits.labels)
    pooled_NF = torch.from_numpy(pooled_states(job.model, examples))
    weight_KF, bias_K = prototype_head(pooled_NF, torch.from_numpy(examples.targets_N), len(job.splits.labels))
    head = job.model.head
    assert isinstance(head, PooledLinear)  # noqa: S101 - transfer makes classifiers
    head.linear.weight.data, head.linear.bias.data = weight_KF.float(), bias_K.float()
