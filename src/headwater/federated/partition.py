"""Clients for rows that have none of their own.

A partitioner learns from the training rows' labels who gets which share, so that test rows are dealt alike.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def iid(labels: Sequence[str], clients: int, alpha: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Deal every label evenly; `alpha` has no effect.

    Returns:
        Label to the clients' shares (C,), which sum to 1.
    """
    del alpha, rng
    return {label: np.full(clients, 1 / clients) for label in sorted(set(labels))}


def dirichlet(labels: Sequence[str], clients: int, alpha: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Deal each label by shares drawn from a Dirichlet distribution (Hsu et al. 2019, arXiv:1909.06335).

    A small `alpha` gives clients that hold mostly one label; a large one is like `iid`.

    Returns:
        Label to the clients' shares (C,), which sum to 1.
    """
    return {label: rng.dirichlet(np.full(clients, alpha)) for label in sorted(set(labels))}


def deal(labels: Sequence[str], shares: dict[str, np.ndarray], rng: np.random.Generator) -> list[str]:
    """Return a client for each row: ``client-000``, ...; a label without shares is dealt evenly."""
    clients = len(next(iter(shares.values())))
    even = np.full(clients, 1 / clients)
    width = len(str(clients - 1))
    chosen = [int(rng.choice(clients, p=shares.get(label, even))) for label in labels]
    return [f"client-{number:0{width}d}" for number in chosen]
