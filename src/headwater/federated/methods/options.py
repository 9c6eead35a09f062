"""Options of the methods that change the clients' training."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headwater.config import Config, Several
from headwater.federated import METHODS
from headwater.registry import name_in, read_by

_READ_BY = {"prox": "fedprox", "dyn": "feddyn", "moon": "moon", "moon_temperature": "moon"}


class MethodOptions(Config):
    """What changes the clients' training."""

    method: Several[Annotated[str, name_in("headwater.local_methods", METHODS)]] = ()
    """Changes to plain local training, one or more: `fedprox`, `scaffold`, `fednova`, `feddyn` or `moon`."""
    prox: Annotated[float, Field(ge=0.0)] = 0.01
    """FedProx's mu: how strongly a client is held to the weights that it was sent."""
    dyn: Annotated[float, Field(gt=0.0)] = 0.1
    """FedDyn's alpha."""
    moon: Annotated[float, Field(ge=0.0)] = 1.0
    """MOON's mu, the weight of its contrastive loss."""
    moon_temperature: Annotated[float, Field(gt=0.0)] = 0.5
    """MOON's temperature."""

    def unread(self) -> dict[str, str]:
        """Each has a method that reads it."""
        read = read_by("headwater.local_methods", METHODS, *self.method)
        without = {name: f"with --method {by}" for name, by in _READ_BY.items() if name not in read}
        return super().unread() | without
