"""Options of the methods after which each client has a model of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headwater.config import Config, Several
from headwater.federated import PERSONALIZERS
from headwater.registry import name_in, read_by

_READ_BY = {
    "own": ("fedper", "fedrep"),
    "own_epochs": ("fedrep",),
    "pull": ("ditto", "pfedme"),
    "mixing": ("apfl",),
    "inner_steps": ("pfedme", "perfedavg"),
    "inner_lr": ("pfedme", "perfedavg"),
    "clusters": ("ifca",),
}


class PersonalOptions(Config):
    """Whether and how each client gets a model of its own."""

    personal: Annotated[str, name_in("headwater.personalizers", PERSONALIZERS, "none")] = "none"
    """A model for each client, from the last round: `fedper` or `fedrep` (its own last layers), `ditto` or `pfedme`
    (held to the shared one), `apfl` (mixed with it), `perfedavg` (a few steps from it), `ifca` (one of several shared
    ones); or `none`."""
    own: Annotated[Several[str], Field(min_length=1)] = ("head.",)
    """How the names of the weights begin that never leave a client, with `fedper` and `fedrep`."""
    own_epochs: Annotated[int, Field(ge=1)] = 5
    """FedRep's passes over a client's rows in which only its own weights learn."""
    pull: Annotated[float, Field(ge=0.0)] = 1.0
    """Ditto's and pFedMe's lambda: how strongly a client's own model is held to the shared one."""
    mixing: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """What APFL's share of a client's own model begins with; it is learned."""
    inner_steps: Annotated[int, Field(ge=1)] = 5
    """Steps that pFedMe and Per-FedAvg take on a batch from the shared weights towards a client's own."""
    inner_lr: Annotated[float, Field(gt=0.0)] = 0.3
    """Their learning rate."""
    clusters: Annotated[int, Field(ge=2)] = 2
    """IFCA's number of shared models."""

    def unread(self) -> dict[str, str]:
        """Each has methods that read it."""
        given = () if self.personal == "none" else (self.personal,)
        read = read_by("headwater.personalizers", PERSONALIZERS, *given)
        without = {name: f"with --personal {' or '.join(by)}" for name, by in _READ_BY.items() if name not in read}
        return super().unread() | without
