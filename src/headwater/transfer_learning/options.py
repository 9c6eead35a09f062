"""Options of `transfer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headwater.config import DataOptions, Fraction, RunOptions
from headwater.features.numeric import WindowOptions
from headwater.features.tokenizers import TOKENIZERS
from headwater.model import Freeze
from headwater.registry import name_in
from headwater.trainer import TrainOptions
from headwater.transfer_learning import METHODS

AUTO, SCRATCH = "auto", "scratch"


class TransferOptions(TrainOptions, WindowOptions, DataOptions, RunOptions):
    """Options of `transfer`."""

    method: Annotated[str, name_in("headwater.transfer_methods", METHODS, AUTO)] = "finetune"
    """`scratch` (the control: same shape, nothing carried over), `init` (start from the source's weights),
    `features` (frozen encoder, shallow classifier), `finetune` (gradual unfreezing, smaller rates for lower layers),
    `multitask` (learn the source's task beside the target's) or `lora` (the head, and low-rank adapters on frozen
    matrices); `auto` tries the others but `lora` in short runs and takes the best on the held-out rows."""
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
    """Likewise the pull of a new head to zero, with `--l2-sp`."""
    bss: Annotated[float, Field(ge=0.0)] = 0.0
    """Batch spectral shrinkage: this times the square of the smallest singular value of each batch's features (Chen et
    al. 2019; 0.001 is usual); 0 is without."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the adapters of `lora` (Hu et al. 2021)."""
    lora_alpha: Annotated[float, Field(gt=0.0)] = 16.0
    """The adapters of `lora` count this / `--rank`."""
    lora_targets: str = "weight_ih,weight_hh,embedding"
    """Matrices of the encoder that `lora` adapts: parts of their names, with commas between."""
    head: Literal["auto", "new", "source"] = "auto"
    """Whether to keep the source's head; `auto` keeps it if the target has the same labels."""
    control: bool = False
    """Train the same from scratch too, and tell a gain from a loss by a paired interval of the difference on the test
    rows; always done where the source's input side can't read the target's rows. A journey needs it less: where
    `scratch` is a method in its matrix, the report compares with that."""
    control_seeds: Annotated[int, Field(ge=1)] = 1
    """Seeds for which `--control` trains both, counted up from `--seed`."""
    source_data: str | None = None
    """Rows of the source task, for `multitask`."""
    source_text: str = "text"
    """The column of the source rows' text."""
    source_label: str = "label"
    """The column of the source rows' label."""
    source_weight: Annotated[float, Field(gt=0.0)] = 0.5
    """How much a source row counts beside a target row, for `multitask`."""

    def unread(self) -> dict[str, str]:
        """Each method reads its own options, `auto` those of all it tries; what a plug-in's reads isn't known."""
        if self.method not in (*METHODS, AUTO):
            return {}
        trained = ("scratch", "init", "finetune", "multitask", "lora")
        readers = [
            (() if self.control else TrainOptions.model_fields, trained),
            (("control", "control_seeds"), ("init", "features", "finetune", "multitask", "lora")),
            (("head", "bss"), ("init", "finetune", "multitask", "lora")),
            (("freeze", "l2_sp", "l2_sp_head"), ("init", "finetune", "multitask")),
            (("unfreeze", "probe_share", "lr_decay"), ("finetune",)),
            (("rank", "lora_alpha", "lora_targets"), ("lora",)),
            (("source_data", "source_text", "source_label", "source_weight"), ("multitask",)),
        ]
        unread = {} if self.unfreeze == "probe_first" else {"probe_share": "with --unfreeze probe_first"}
        unread |= {} if self.l2_sp else {"l2_sp_head": "with --l2-sp"}
        unread |= {} if self.control else {"control_seeds": "with --control"}
        unread |= {"weight_decay": "without --l2-sp"} if self.l2_sp and not self.control else {}
        if self.values is None:
            unread |= dict.fromkeys(WindowOptions.model_fields, "with --values")
        else:
            unread |= dict.fromkeys(("text", "tokenizer"), "without --values")
        tried = set(METHODS) - {"lora"} - (set() if self.source_data else {"multitask"})
        here = tried if self.method == AUTO else {self.method}
        return unread | {
            name: f"with --method {' or '.join(methods)}"
            for names, methods in readers
            for name in names
            if not here & set(methods)
        }
