"""Options of `federate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headwater.config import Fraction, RunOptions
from headwater.federated import AGGREGATORS
from headwater.federated.population import PopulationOptions
from headwater.model import Freeze
from headwater.precision import Precision
from headwater.registry import name_in


class FederateOptions(PopulationOptions, RunOptions):
    """Options of `federate`."""

    no_result = RunOptions.no_result | {"processes"}

    rounds: Annotated[int, Field(ge=1)] = 60
    """Rounds at most."""
    aggregator: Annotated[str, name_in("headwater.aggregators", AGGREGATORS)] = "weighted"
    """`mean` (every client alike), `weighted` (by rows: FedAvg) or `median` (of each number)."""
    participation: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Share of the clients that take part in a round; at least two do, if there are two."""
    local_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes of a client over its rows in a round."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows a step of a client."""
    client_lr: Annotated[float, Field(gt=0.0)] = 0.3
    """A client's learning rate."""
    client_optimizer: Literal["sgd", "adamw"] = "sgd"
    """What a client trains with; `adamw` wants a `--client-lr` near 0.001."""
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest L2 norm of the gradient in a client's step; 0 doesn't clip."""
    precision: Precision = "float32"
    """`bfloat16` computes a client's products in that type, an error where the processor can't; `auto` if it can."""
    processes: Annotated[int, Field(ge=0)] = 0
    """Processes that a round's clients are spread over, one thread each; 0 takes one a core. Changes no bit."""
    server_lr: Annotated[float, Field(gt=0.0)] = 1.0
    """Times the aggregate; 1 is plain federated averaging."""
    server_momentum: Fraction = 0.9
    """Share of the server's last step that is kept (FedAvgM): what carries many small clients forward; 0 is FedAvg."""
    freeze: Freeze = "none"
    """Weights that stay as they are and are never sent: fewer bytes, and less for privacy noise to spoil."""
    target: Fraction = 0.0
    """Stop as soon as the held-out accuracy reaches this; 0 doesn't."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many rounds without a better held-out accuracy; 0 doesn't."""
    epsilon: Annotated[float, Field(ge=0.0)] = 0.0
    """Client-level differential privacy within this epsilon over all rounds; 0 is without. Works with `mean`, and
    best with `--server-momentum 0`, which does not add the noise up."""
    delta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """The chance that the guarantee doesn't hold; 0 takes 1 / clients^1.1."""
    update_clip: Annotated[float, Field(gt=0.0)] = 0.2
    """Largest L2 norm of a client's whole update, with privacy."""
    controls: bool = True
    """Train the two controls too: each client alone, and all rows in one place."""

    def unread(self) -> dict[str, str]:
        """Without privacy nothing is clipped for it."""
        without = {} if self.epsilon else dict.fromkeys(("delta", "update_clip"), "with --epsilon")
        return super().unread() | without

    @model_validator(mode="after")
    def _private_runs_average(self) -> FederateOptions:
        if self.epsilon and self.aggregator != "mean":
            raise ValueError(
                f"with epsilon, one client's pull on the aggregate must be bounded, which {self.aggregator!r} "
                "doesn't do: use --aggregator mean"
            )
        if self.epsilon and (self.target or self.patience):
            raise ValueError(
                "with epsilon, stopping by the clients' held-out rows would leak them: leave target and patience at 0"
            )
        return self
