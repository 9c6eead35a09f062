"""Options of `federate`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from headwater.config import Fraction, RunOptions
from headwater.federated.aggregators.options import AVERAGES, BY_DISTANCE, AggregatorOptions
from headwater.federated.asynchronous import AsynchronousOptions
from headwater.federated.attacks import AttackOptions
from headwater.federated.codecs.options import CodecOptions
from headwater.federated.conditions import ConditionOptions
from headwater.federated.methods.options import MethodOptions
from headwater.federated.personal.options import PersonalOptions
from headwater.federated.population import PopulationOptions
from headwater.federated.sampling import SamplingOptions
from headwater.federated.server_optimizers import ServerOptions
from headwater.model import Freeze
from headwater.precision import Precision
from headwater.registry import name_in
from headwater.tasks import TASKS
from headwater.tasks.language_modeling import LanguageModelingOptions

_LEAST_LR = 1e-30
"""Smaller ones vanish in float32, and what is divided by them is no number."""
_CHANGES_ROWS = ("int4", "ternary", "sign", "rotation", "low_rank", "top_k", "random_k")
"""Codecs after which other rows of an update than before are zero."""
_BIASED = {"sign", "low_rank", "top_k"}
"""Codecs that lose something also on average."""
FEDERATED = {name: place for name, place in TASKS.items() if name != "representation"}


class FederateOptions(
    SamplingOptions,
    ConditionOptions,
    AsynchronousOptions,
    AggregatorOptions,
    ServerOptions,
    AttackOptions,
    MethodOptions,
    CodecOptions,
    PersonalOptions,
    LanguageModelingOptions,
    PopulationOptions,
    RunOptions,
):
    """Options of `federate`."""

    no_result = RunOptions.no_result | {"processes", "store"}

    task: Annotated[str, name_in("headwater.tasks", FEDERATED)] = "classification"
    """What the clients learn: `classification`, or `language_modeling`, which needs no labels and starts from a
    language model."""
    fresh: bool = False
    """Draw the weights anew: of the checkpoint only its sizes and its vocabulary stay. What pre-training is worth."""
    rounds: Annotated[int, Field(ge=1)] = 60
    """Rounds at most."""
    local_epochs: Annotated[int, Field(ge=1)] = 1
    """Passes of a client over its rows in a round."""
    local_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of a client in a round, in place of `--local-epochs`; 0 goes by those."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows a step of a client; of a language model with `--bptt`, streams that are read side by side."""
    hidden_state: Literal["carried", "reset"] = "carried"
    """What a stream's window begins with, with `--bptt`: the state that the last one has left, or zeros. A round begins
    with zeros, and no state is ever sent."""
    client_lr: Annotated[float, Field(gt=0.0, le=1e6)] = 0.3
    """A client's learning rate."""
    client_lr_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Times the client's learning rate from each round to the next, such as 0.99: clients who differ come closer."""
    client_optimizer: Literal["sgd", "adamw"] = "sgd"
    """What a client trains with; `adamw` wants a `--client-lr` near 0.001."""
    clip: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest L2 norm of the gradient in a client's step; 0 doesn't clip."""
    precision: Precision = "float32"
    """`bfloat16` computes a client's products in that type, an error where the processor can't; `auto` if it can."""
    processes: Annotated[int, Field(ge=0)] = 0
    """Processes that a round's clients are spread over, one thread each; 0 takes one a core. Changes no bit."""
    store: bool = False
    """Keep the clients' encoded rows in a file that is read where it lies, not in memory: for very many clients. The
    model is the same, bit for bit. Needs the extra `parquet`."""
    freeze: Freeze = "none"
    """Weights that stay as they are and are never sent: fewer bytes, and less for privacy noise to spoil."""
    share: Literal["all", "adapters"] = "all"
    """`adapters`: nothing but the adapters that `transfer --method adapters` has put in, and the head, learns and is
    sent."""
    min_replies: Annotated[int, Field(ge=1)] = 1
    """Of fewer updates a round makes nothing."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Rounds from one measurement on the held-out rows to the next."""
    zstd: Annotated[int, Field(ge=0, le=19)] = 0
    """Level at which whole messages are compressed too, by zstandard; 0 doesn't."""
    target: Fraction = 0.0
    """Stop as soon as the held-out accuracy reaches this; 0 doesn't."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Stop after this many rounds without a better held-out accuracy; 0 doesn't."""
    epsilon: Annotated[float, Field(ge=0.0, le=1000.0)] = 0.0
    """Client-level differential privacy within this epsilon over all rounds; 0 is without. Works with `mean`, and
    best with `--server-momentum 0`, which does not add the noise up."""
    delta: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """The chance that the guarantee doesn't hold; 0 takes 1 / clients^1.1."""
    update_clip: Annotated[float, Field(gt=0.0)] = 0.2
    """Largest L2 norm of a client's whole update, with privacy."""
    controls: bool = True
    """Train the two controls too: each client alone, and all rows in one place."""

    def unread(self) -> dict[str, str]:
        """Without privacy nothing is clipped for it; a language model has no labels."""
        unread = super().unread()
        if not self.epsilon:
            unread |= dict.fromkeys(("delta", "update_clip"), "with --epsilon")
        else:
            unread |= {"sampler": "without --epsilon"}
        if self.share == "adapters":
            unread |= {"freeze": "with --share all"}
        if self.local_steps:
            unread |= {"local_epochs": "without --local-steps"}
        if self.task == "language_modeling":
            return (
                unread
                | {"label": "with --task classification"}
                | ({} if self.bptt else {"hidden_state": "with --bptt"})
            )
        return unread | dict.fromkeys(
            (*LanguageModelingOptions.model_fields, "hidden_state"), "with --task language_modeling"
        )

    @model_validator(mode="after")
    def _methods_fit(self) -> FederateOptions:
        if len(set(self.method)) < len(self.method):
            raise ValueError(f"method names one twice: {', '.join(self.method)}")
        if {"fedprox", "fednova"} <= set(self.method):
            raise ValueError("fednova counts plain steps, and those of fedprox are none: take one of them")
        if "feddyn" in self.method and {"scaffold", "fednova"} & set(self.method):
            other = min({"scaffold", "fednova"} & set(self.method))
            raise ValueError(
                f"feddyn corrects the clients' drift by itself, which {other} would change: take one of them"
            )
        for method in ("scaffold", "fednova"):
            if method in self.method and self.client_optimizer != "sgd":
                raise ValueError(f"{method} counts steps of plain gradient descent: use --client-optimizer sgd")
        last = self.client_lr * self.client_lr_decay ** (self.rounds - 1)
        if last < _LEAST_LR:
            raise ValueError(f"client_lr_decay leaves a learning rate of {last:.0e} to the last round: raise it")
        if "moon" in self.method and self.bptt:
            raise ValueError("moon compares the representations of rows, and streams have none: leave --bptt at 0")
        if "moon" in self.method and self.freeze == "encoder" and self.share == "all":
            raise ValueError("moon compares what encoders make of rows, and with --freeze encoder they are the same")
        if self.epsilon and self.method and set(self.method) - {"fedprox"}:
            raise ValueError(
                f"with epsilon, clients may send nothing that isn't clipped and noised and keep nothing: "
                f"{', '.join(self.method)} was not made for that; only fedprox goes with it"
            )
        return self

    @model_validator(mode="after")
    def _servers_halves_fit(self) -> FederateOptions:
        for method in ("scaffold", "feddyn"):
            exact = " --server-optimizer sgd --server-momentum 0" if method == "feddyn" else ""
            if method in self.method and self.aggregator in ("weighted", "validation"):
                raise ValueError(f"{method}'s server takes the clients for equal: use --aggregator mean{exact}")
            biased = sorted(_BIASED & set(self.codec))
            if method in self.method and biased and not self.error_feedback:
                raise ValueError(
                    f"{method}'s server would part from its clients by what {biased[0]} loses: add --error-feedback"
                )
            if method in self.method and self.min_replies > 1:
                raise ValueError(f"{method}'s clients and server must move together: leave --min-replies at 1")
        plain = self.server_optimizer == "sgd" and not self.server_momentum and self.server_lr in (None, 1.0)
        if "feddyn" in self.method and not plain:
            raise ValueError(
                "feddyn's step on the server is exact: use --server-optimizer sgd --server-momentum 0 --server-lr 1"
            )
        return self

    @model_validator(mode="after")
    def _paces_fit(self) -> FederateOptions:
        if self.epsilon and (self.buffer or self.over_select or self.min_replies > 1):
            raise ValueError(
                "with epsilon, what the server does must not depend on how many answer, as it does with --buffer, "
                "--over-select and --min-replies: leave them out"
            )
        if self.epsilon and self.deadline and not self.local_steps:
            raise ValueError(
                "with epsilon, no client may decide whether another one counts, and with --deadline a client's time "
                "goes by its rows over the median client's: give --local-steps, or leave --deadline out"
            )
        if self.sampler == "weighted" and self.aggregator == "weighted":
            raise ValueError("sampler and aggregator would both count a client by its rows: use --aggregator mean")
        if self.buffer and self.sampler == "poisson":
            raise ValueError("poisson draws for rounds, and with --buffer there are none: use another --sampler")
        for method in ("scaffold", "feddyn"):
            if self.buffer and method in self.method:
                raise ValueError(f"{method}'s server takes the clients' answers in rounds: leave --buffer at 0")
        return self

    @model_validator(mode="after")
    def _aggregators_fit(self) -> FederateOptions:
        apart = {"scaffold", "fednova"} & set(self.method)
        if apart and self.aggregator in BY_DISTANCE:
            raise ValueError(
                f"aggregator {self.aggregator!r} measures an update by one norm, and what {min(apart)} sends beside "
                "the weights has a size of its own: use mean, weighted, median or trimmed_mean"
            )
        if "fednova" in self.method and self.aggregator == "validation":
            raise ValueError("fednova sends no weights that could be measured: use another aggregator than validation")
        if self.used_rows and self.aggregator not in AVERAGES:
            raise ValueError(f"used_rows takes rows out of an average: use --aggregator {' or '.join(AVERAGES)}")
        given = {*self.method, *self.codec, self.client_optimizer}
        moving = sorted(given & {"adamw", "scaffold", "feddyn", *_CHANGES_ROWS})
        if self.used_rows and moving:
            raise ValueError(
                f"used_rows goes by the rows of an update that aren't zero, and {moving[0]} changes which those are: "
                "leave one of them out"
            )
        if self.used_rows and self.epsilon:
            raise ValueError(
                "with epsilon, one client's pull on the aggregate must be bounded, and used_rows doesn't bound that of "
                "a client who alone has changed a row: leave it off"
            )
        return self

    @model_validator(mode="after")
    def _personal_fits(self) -> FederateOptions:
        name = self.personal
        if self.method and name in ("apfl", "pfedme", "perfedavg", "ifca"):
            raise ValueError(f"{name} trains in its own way, which --method {', '.join(self.method)} would change")
        if self.client_optimizer != "sgd" and name in ("apfl", "pfedme", "perfedavg"):
            raise ValueError(f"{name} takes steps of plain gradient descent: use --client-optimizer sgd")
        if self.bptt and name in ("apfl", "pfedme", "perfedavg"):
            raise ValueError(f"{name} takes several steps on the same rows, and streams have none: leave --bptt at 0")
        if name in ("fedper", "fedrep", "ifca") and self.aggregator == "validation":
            raise ValueError(
                f"with {name} a client sends no whole model that could be measured: use another aggregator"
            )
        if name == "ifca" and self.codec:
            raise ValueError("ifca's clients send one model of several, and codecs expect all: leave --codec out")
        if name == "pfedme" and not self.pull:
            raise ValueError(
                "pfedme's shared model moves by pull times its distance to a client's own: give --pull above 0"
            )
        if name == "ifca" and self.epsilon:
            raise ValueError("with epsilon, which model a client chooses would leak: ifca was not made for that")
        if name == "ifca" and self.aggregator not in ("mean", "weighted"):
            raise ValueError(
                f"ifca averages over those who chose a model, which {self.aggregator!r} can't: use mean or weighted"
            )
        return self

    @model_validator(mode="after")
    def _private_clients_keep_nothing(self) -> FederateOptions:
        if self.epsilon and self.error_feedback:
            raise ValueError(
                "with epsilon, what error_feedback keeps of a client's updates is not bounded: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _attacks_fit(self) -> FederateOptions:
        if self.attack in ("label_flip", "backdoor") and self.task == "language_modeling":
            raise ValueError(f"attack = {self.attack!r}: it gives rows other labels, and language models have none")
        return self

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
