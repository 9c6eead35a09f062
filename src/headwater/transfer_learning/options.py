"""Options of `transfer`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from headwater.config import Config, DataOptions, Fraction, RunOptions
from headwater.errors import ConfigError
from headwater.features.numeric import WindowOptions
from headwater.features.tokenizers import TOKENIZERS
from headwater.model import MOST_UNITS, DropoutOptions, Freeze
from headwater.registry import lookup, name_in
from headwater.tasks.language_modeling import LanguageModelingOptions
from headwater.trainer import TrainOptions
from headwater.transfer_learning import METHODS
from headwater.transfer_learning.balancing import BALANCERS
from headwater.transfer_learning.task_options import TaskOptions

AUTO, SCRATCH = "auto", "scratch"
_STARTED = ("init", "finetune", "multitask")
"""The methods whose whole model goes on learning from the source's weights."""


class DropoutChanges(Config):
    """What is dropped in another share than in the source's training; see `headwater.model.DropoutOptions`."""

    embedding_dropout: Fraction | None = None
    """Share of the vocabulary's rows dropped in each step; without it, and likewise below, the source's share."""
    input_dropout: Fraction | None = None
    """Variational dropout on the embedded or projected rows."""
    hidden_dropout: Fraction | None = None
    """Variational dropout between recurrent layers."""
    weight_dropout: Fraction | None = None
    """Share of the recurrent weights dropped in each step."""
    head_dropout: Fraction | None = None
    """Dropout on what the head reads."""

    def dropout(self, source: DropoutOptions) -> DropoutOptions:
        """Return the source's shares with these in their place."""
        return source.model_copy(update=self.only(DropoutChanges).model_dump(exclude_none=True))


class VirtualAdversarialOptions(Config):
    """Predictions that are to stay as they are where the input moves; see `virtual_adversarial`."""

    vat: Annotated[float, Field(ge=0.0)] = 0.0
    """Virtual adversarial training: this times the divergence of the predictions where the embedded tokens, or the
    numbers, move in the direction that changes them most (Miyato et al. 2016, who take 1); 0 is without."""
    vat_radius: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 5.0
    """How far all tokens or steps of a row move together, in standard deviations of the numbers that are moved."""
    vat_data: str | None = None
    """More rows for `--vat`, which needs no labels: a file with a column named as `--text` (of numbers, with
    `--values`), or `card:NAME/SPLIT`."""

    def unread(self) -> dict[str, str]:
        """Without its weight nothing else is read."""
        return super().unread() | ({} if self.vat else dict.fromkeys(("vat_radius", "vat_data"), "with --vat"))


class TransferOptions(
    TaskOptions,
    VirtualAdversarialOptions,
    DropoutChanges,
    LanguageModelingOptions,
    TrainOptions,
    WindowOptions,
    DataOptions,
    RunOptions,
):
    """Options of `transfer`."""

    task: Literal["classification", "language_modeling"] = "classification"
    """What to learn from the target: `classification`, or `language_modeling`, which makes a language model of the
    target's text from one of another text (Howard and Ruder 2018, section 3.2) and needs no labels; where there are
    some, they decide which rows are held out, so that these are those of a classifier."""
    method: Annotated[str, name_in("headwater.transfer_methods", METHODS, AUTO)] = "finetune"
    """`scratch` (the control: same shape, nothing carried over), `init` (start from the source's weights),
    `features` (frozen encoder, shallow classifier), `finetune` (gradual unfreezing, smaller rates for lower layers),
    `multitask` (learn other tasks beside the target's), `lora` (the head, and low-rank adapters on frozen matrices),
    `adapters` (the head, and bottlenecks behind frozen layers) or `prototypes` (frozen encoder, the nearest class mean
    wins: for few rows, after `metalearn`); `auto` tries the others but the last two in short runs on rows held out for
    that, and takes the safest of those that are within one standard error of the best."""
    tokenizer: Annotated[str, name_in("headwater.tokenizers", TOKENIZERS, "source")] = "source"
    """How the target's text is split: `word`, `char`, `char_space`, `bpe` or `jieba`; `source` splits as the source
    does."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Tokens or steps a row at most; 0 keeps the source's limit."""
    freeze: Freeze = "none"
    """Layers that `init`, `finetune` and `multitask` never change: `embedding`, or the whole `encoder`."""
    unfreeze: Literal["gradual", "chain_thaw", "probe_first", "at_once"] = "gradual"
    """When `finetune` thaws the layers: `gradual`, one more an epoch, from the top (Howard and Ruder 2018);
    `chain_thaw`, the head alone, each layer alone from the bottom, then all (Felbo et al. 2017); `probe_first`, the
    head alone, then all (LP-FT, Kumar et al. 2022); or all `at_once`."""
    probe_share: Fraction = 0.5
    """Share of the epochs in which `--unfreeze probe_first` trains the head alone."""
    lr_decay: Annotated[float, Field(ge=1.0)] = 1.3
    """`finetune` divides the learning rate by this for each layer further down (Howard and Ruder 2018 take 2.6 for
    their deeper network; on one or two layers 1.3 measured better)."""
    l2_sp: Annotated[float, Field(ge=0.0)] = 0.0
    """Pull of `init`, `finetune` and `multitask` to the source: half of this times the squared distance of the weights
    from those carried over (L2-SP, Li et al. 2018, in place of `--weight-decay`); 0 is without."""
    l2_sp_head: Annotated[float, Field(ge=0.0)] = 0.01
    """Likewise the pull of a new head to zero, with `--l2-sp`; a head that is kept is pulled to the source's."""
    bss: Annotated[float, Field(ge=0.0)] = 0.0
    """Batch spectral shrinkage: this times the square of the smallest singular value of each batch's features (Chen et
    al. 2019; 0.001 is usual); 0 is without."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters of `lora` (Hu et al. 2021)."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The adapters of `lora` count this / `--rank`."""
    lora_targets: str = "weight_ih,weight_hh,embedding"
    """Matrices of the encoder that `lora` adapts: parts of their names, with commas between."""
    bottleneck: Annotated[int, Field(ge=1, le=MOST_UNITS)] = 16
    """Units of each bottleneck of `adapters` (Houlsby et al. 2019)."""
    adapter_layers: str = "all"
    """Layers that `adapters` puts a bottleneck behind: their numbers, from 1, with commas between; or `all`."""
    head: Literal["auto", "new", "source"] = "auto"
    """Whether to keep the source's head; `auto` keeps it if the target has the same labels, and a language model's
    decoder."""
    control: bool = True
    """Train the same from scratch too, and tell a gain from a loss by a paired interval of the difference on the test
    rows. It costs two trainings for each of the `--control-seeds`, less the one that is done anyway; a journey can do
    without where `scratch` is a method in its matrix, as the report compares with that."""
    control_seeds: Annotated[int, Field(ge=1)] = 3
    """Seeds for which `--control` trains both, counted up from `--seed`; one doesn't show what others would do."""

    @model_validator(mode="after")
    def _method_fits_task(self) -> Self:
        if self.task == "language_modeling" and self.method in (AUTO, "features", "multitask", "prototypes"):
            raise ConfigError(
                f"method = {self.method!r} makes classifiers: for --task language_modeling give --method finetune, "
                "init, lora, adapters or scratch"
            )
        if self.task == "language_modeling" and self.values is not None:
            raise ConfigError("task = 'language_modeling' predicts tokens, and numbers have none: leave --values out")
        return self

    def unread(self) -> dict[str, str]:
        """What other options, the task or the method leave without effect; of a plug-in's method that isn't known."""
        if self.method not in (*METHODS, AUTO):
            return {}
        return super().unread() | self._unread_beside() | self._unread_by_task() | self._unread_by_method()

    def _unread_beside(self) -> dict[str, str]:
        unread = {} if self.unfreeze == "probe_first" else {"probe_share": "with --unfreeze probe_first"}
        unread |= {} if self.l2_sp else {"l2_sp_head": "with --l2-sp"}
        unread |= {} if self.control else {"control_seeds": "with --control"}
        if self.values is None:
            unread |= dict.fromkeys(WindowOptions.model_fields, "with --values")
        else:
            unread |= dict.fromkeys(("text", "tokenizer", "source_text", "embedding_dropout"), "without --values")
        if self.freeze == "encoder":
            unread |= dict.fromkeys(("unfreeze", "probe_share", "lr_decay"), "without --freeze encoder")
            unread |= {"bss": "without --freeze encoder"} if self.method in _STARTED else {}
        held = self.l2_sp and self.method in _STARTED
        return unread | ({"weight_decay": "without --l2-sp"} if held and not self._has_twin else {})

    def _unread_by_task(self) -> dict[str, str]:
        if self.task == "language_modeling":
            groups = (*TaskOptions.model_fields, *VirtualAdversarialOptions.model_fields)
            return dict.fromkeys(("bss", "control_seeds", *groups), "with --task classification")
        return dict.fromkeys(LanguageModelingOptions.model_fields, "with --task language_modeling")

    def _unread_by_method(self) -> dict[str, str]:
        """Each method reads its own options, `auto` those of all it tries, and a twin those of a training."""
        of_training = (TrainOptions, DropoutChanges, VirtualAdversarialOptions)
        trained = () if self._has_twin else tuple(name for group in of_training for name in group.model_fields)
        readers = [
            (trained, ("scratch", *_STARTED, "lora", "adapters")),
            (("control_seeds",), tuple(name for name in METHODS if name != SCRATCH)),
            (("head", "bss"), (*_STARTED, "lora", "adapters")),
            (("freeze", "l2_sp", "l2_sp_head", "lm_weight", "lm_data", "lm_text"), _STARTED),
            (("unfreeze", "probe_share", "lr_decay"), ("finetune",)),
            (("rank", "lora_alpha", "lora_targets"), ("lora",)),
            (("bottleneck", "adapter_layers"), ("adapters",)),
            (("source_data", "source_text", "source_label", "source_weight"), ("multitask",)),
            (
                ("balance", "gradnorm_alpha", "task_temperature"),
                _STARTED if self.lm_weight else ("multitask",),
            ),
        ]
        tried = set(METHODS) - {"adapters", "prototypes"} - (set() if self.source_data else {"multitask"})
        here = tried if self.method == AUTO else {self.method}
        return {
            name: f"with --method {' or '.join(methods)}"
            for names, methods in readers
            for name in names
            if not here & set(methods)
        }

    @property
    def _has_twin(self) -> bool:
        return self.control and self.task == "classification"

    @model_validator(mode="after")
    def _something_learns_from_other_tasks(self) -> Self:
        read = [name for name in ("source_data", "lm_weight") if getattr(self, name) and name not in self.unread()]
        if read and self.freeze == "encoder":
            raise ConfigError(
                f"freeze = 'encoder' keeps what the tasks share as it is, so nothing would learn from {read[0]} = "
                f"{getattr(self, read[0])!r}: leave --freeze at none or embedding, or --{read[0].replace('_', '-')} out"
            )
        return self

    @model_validator(mode="after")
    def _whole_gradients(self) -> Self:
        if self.processes != 1:
            why = f"with processes = {self.processes} each has a part of them: leave --processes at 1"
        elif self.task_temperature:
            why = (
                f"with task_temperature = {self.task_temperature:g} a step has one task: leave --task-temperature at 0"
            )
        else:
            return self
        if "balance" not in self.unread() and lookup("headwater.balancers", BALANCERS, self.balance).whole_gradients:
            raise ConfigError(f"balance = {self.balance!r} compares the gradients of all tasks in each step, but {why}")
        return self
