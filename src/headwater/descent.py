"""Plain gradient descent, for clients and for learners that take a few steps from weights they were given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def sparse_embeddings(model: nn.Module) -> Iterator[None]:
    """Give embeddings sparse gradients as long as the context lasts.

    A step of `sgd_step` then reads and writes the rows of the batch's tokens only.
    """
    embeddings = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for embedding in embeddings:
        embedding.sparse = True
    try:
        yield
    finally:
        for embedding in embeddings:
            embedding.sparse = False


@torch.no_grad()
def sgd_step(parameters: Sequence[nn.Parameter], lr: float, clip: float) -> None:
    """Take a step of plain gradient descent and clear the gradients.

    Args:
        parameters: Their gradients may be sparse, as an embedding's are.
        lr: Learning rate.
        clip: The gradient is scaled down to this L2 norm if it is longer; 0 doesn't.
    """
    gradients = [(p, p.grad) for p in parameters if p.grad is not None]
    if clip:
        gradients = [(p, g.coalesce() if g.is_sparse else g) for p, g in gradients]
        norms = [torch.linalg.vector_norm(g.values() if g.is_sparse else g) for _, g in gradients]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        lr *= min(1.0, clip / (norm + 1e-6))
    for parameter, gradient in gradients:
        parameter.add_(gradient, alpha=-lr)
        parameter.grad = None
