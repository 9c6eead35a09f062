"""Options of the aggregators."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headwater.config import Config
from headwater.federated import AGGREGATORS
from headwater.registry import name_in, read_by

_READ_BY = {
    "trim": ("trimmed_mean",),
    "hostile": ("krum", "multi_krum", "bulyan"),
    "norm_bound": ("norm_bound",),
    "clip_radius": ("centered_clipping",),
    "validation_temperature": ("validation",),
}
AVERAGES = ("mean", "weighted", "validation")
"""Those that can average a row over fewer clients than the rest."""
BY_DISTANCE = ("geometric_median", "krum", "multi_krum", "bulyan", "norm_bound", "centered_clipping")
"""Those that measure an update by one norm over all its numbers."""


class AggregatorOptions(Config):
    """How updates become one direction."""

    aggregator: Annotated[str, name_in("headwater.aggregators", AGGREGATORS)] = "weighted"
    """Averages: `mean` (every client alike), `weighted` (by rows: FedAvg) or `validation` (by the accuracy of the
    client's weights on the held-out rows). Against hostile clients, who count like all others: `median` or
    `trimmed_mean` (of each number), `geometric_median`, `krum`, `multi_krum` or `bulyan` (by distances), `norm_bound`
    or `centered_clipping` (one update pulls so far only)."""
    trim: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    """Share of the clients that `trimmed_mean` leaves out at each end."""
    hostile: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.2
    """Share of a round's n clients that `krum`, `multi_krum` and `bulyan` take for hostile; no more than (n - 3) / 2
    clients, with `bulyan` (n - 3) / 4."""
    norm_bound: Annotated[float, Field(gt=0.0)] = 0.5
    """Largest L2 norm of an update with `--aggregator norm_bound`; a larger one is scaled down. An honest one's is at
    most `--client-lr` times `--clip` times the client's steps, often far less."""
    clip_radius: Annotated[float, Field(gt=0.0)] = 0.5
    """With `--aggregator centered_clipping`, how far from the last aggregate an update counts in full (L2 norm)."""
    validation_temperature: Annotated[float, Field(ge=0.02)] = 0.05
    """So much more accuracy makes a client count e times as much with `--aggregator validation`."""
    used_rows: bool = False
    """Average each row of the embedding over just those clients that have changed it; with the averages only."""

    def unread(self) -> dict[str, str]:
        """Each has aggregators that read it."""
        read = read_by("headwater.aggregators", AGGREGATORS, self.aggregator)
        without = {name: f"with --aggregator {' or '.join(by)}" for name, by in _READ_BY.items() if name not in read}
        return super().unread() | without
