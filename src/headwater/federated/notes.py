"""What a reader of a federation's figures is told of its clients."""

from __future__ import annotations

from collections.abc import Sequence

from headwater.federated.protocols import ClientId
from headwater.records import ClientRow
from headwater.statistics import over_clients

_NAMED = 8
"""Clients that are named in a note."""


def named(clients: Sequence[ClientId]) -> str:
    """Return the names of clients for a note, the first ones of many; what can't be printed in them is escaped."""
    names = (client if client.isprintable() else repr(client) for client in clients[:_NAMED])
    return ", ".join(names) + (" and others" if len(clients) > _NAMED else "")


def diverged_notes(clients: Sequence[ClientId]) -> list[str]:
    """Return who has no model of its own to use (see `own_or_shared`)."""
    said = f"Clients whose own model diverged, and who keep the shared one: {len(clients)} ({named(clients)})."
    return [said] if clients else []


def fairness_notes(clients: Sequence[ClientRow]) -> list[str]:
    """Return what the figures over all rows don't say: how unlike they are from client to client."""
    accuracies = [row.metrics["accuracy"] for row in clients]
    if len(accuracies) < 2:
        return []
    found = over_clients(accuracies)
    return [
        (
            f"Over the {len(accuracies)} clients with test rows, each counting the same: accuracy {found['mean']:.3f} "
            f"on average, {found['worst']:.3f} in the worst tenth (a gap of {found['gap']:.3f}), standard deviation "
            f"{found['spread']:.3f}, from {found['low']:.3f} to {found['high']:.3f}."
        )
    ]
