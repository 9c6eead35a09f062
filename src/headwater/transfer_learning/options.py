"""Options of `transfer`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from headwater.config import DataOptions, RunOptions
from headwater.features.tokenizers import TOKENIZERS
from headwater.registry import name_in
from headwater.trainer import TrainOptions
from headwater.transfer_learning import METHODS

Freeze = Literal["none", "embedding", "encoder"]


class TransferOptions(TrainOptions, DataOptions, RunOptions):
    """Options of `transfer`."""

    method: Annotated[str, name_in("headwater.transfer_methods", METHODS)] = "finetune"
    """`scratch` (the control: same shape, nothing carried over), `init` (start from the source's weights),
    `features` (frozen encoder, shallow classifier), `finetune` (gradual unfreezing, smaller rates for lower layers)
    or `multitask` (learn the source's task beside the target's)."""
    tokenizer: Annotated[str, name_in("headwater.tokenizers", TOKENIZERS, "source")] = "source"
    """How the target's text is split: `word`, `char`, `char_space`, `bpe` or `jieba`; `source` splits as the source
    does."""
    max_length: Annotated[int, Field(ge=0)] = 0
    """Tokens a row at most; 0 keeps the source's limit."""
    freeze: Freeze = "none"
    """Layers that `init`, `finetune` and `multitask` never change: `embedding`, or the whole `encoder`."""
    unfreeze: Literal["gradual", "at_once"] = "gradual"
    """Whether `finetune` thaws one layer an epoch, from the top (Howard and Ruder 2018), or all at once."""
    lr_decay: Annotated[float, Field(ge=1.0)] = 1.3
    """`finetune` divides the learning rate by this for each layer further down (Howard and Ruder 2018 take 2.6 for
    their deeper network; on one or two layers 1.3 measured better)."""
    head: Literal["auto", "new", "source"] = "auto"
    """Whether to keep the source's head; `auto` keeps it if the target has the same labels."""
    source_data: str | None = None
    """Rows of the source task, for `multitask`."""
    source_text: str = "text"
    """The column of the source rows' text."""
    source_label: str = "label"
    """The column of the source rows' label."""
    source_weight: Annotated[float, Field(gt=0.0)] = 0.5
    """How much a source row counts beside a target row, for `multitask`."""

    def unread(self) -> dict[str, str]:
        """Each method reads its own options; what a plug-in's reads isn't known."""
        if self.method not in METHODS:
            return {}
        readers = [
            (TrainOptions.model_fields, ("scratch", "init", "finetune", "multitask")),
            (("freeze", "head"), ("init", "finetune", "multitask")),
            (("unfreeze", "lr_decay"), ("finetune",)),
            (("source_data", "source_text", "source_label", "source_weight"), ("multitask",)),
        ]
        return {
            name: f"with --method {' or '.join(methods)}"
            for names, methods in readers
            for name in names
            if self.method not in methods
        }
