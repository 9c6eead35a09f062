"""Options of the tasks that are learned beside the target's."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from headwater.config import Config, Several
from headwater.errors import ConfigError
from headwater.registry import name_in
from headwater.transfer_learning.balancing import BALANCERS


class TaskOptions(Config):
    """Tasks that are learned beside the target's, on the same encoder."""

    source_data: Several[str] = ()
    """Rows of another task that `multitask` learns beside the target's, such as the source's; repeated for several.
    Numbers are in the columns that `--values` names."""
    source_text: Several[str] = ("text",)
    """The column of the source rows' text: given once for all files, or once for each."""
    source_label: Several[str] = ("label",)
    """The column of the source rows' label: likewise."""
    source_weight: Several[Annotated[float, Field(gt=0.0)]] = (0.5,)
    """How much a source row counts beside a target row: likewise."""
    lm_weight: Annotated[float, Field(ge=0.0)] = 0.0
    """`init`, `finetune` and `multitask` predict each next token of unlabelled text too, and that loss counts this
    (Chronopoulou et al. 2019, arXiv:1902.10547, without their decay). It needs an encoder of one direction, and
    the twin from scratch goes without; 0 is without."""
    lm_data: str | None = None
    """Rows of that text, of the target, of the source or of both; without it the training rows'."""
    lm_text: str = "text"
    """The column of that text."""
    task_temperature: Annotated[float, Field(ge=0.0)] = 0.0
    """A step draws one task, in proportion to rows^(1 / this): 1 is by rows, a high one all alike. An epoch lasts until
    the target's rows have been gone through. 0 learns all tasks in every step."""
    balance: Annotated[str, name_in("headwater.balancers", BALANCERS)] = "fixed"
    """How the tasks' losses are weighed: `fixed`, as given; `uncertainty`, learned with the model (Kendall et al.
    2018); `gradnorm`, so that the tasks learn at like rates (Chen et al. 2018); or `pcgrad`, as given, without what
    conflicts in their gradients (Yu et al. 2020). Learned weights begin with the given ones."""
    gradnorm_alpha: Annotated[float, Field(ge=0.0)] = 1.5
    """How strongly `--balance gradnorm` pulls slow tasks forward; 0 makes all tasks' gradients alike in size."""

    def unread(self) -> dict[str, str]:
        """A language model's rows without its weight; what one way of balancing reads."""
        unread = {} if self.lm_data else {"lm_text": "with --lm-data"}
        unread |= {} if self.lm_weight else dict.fromkeys(("lm_data", "lm_text"), "with --lm-weight")
        unread |= {} if self.balance == "gradnorm" else {"gradnorm_alpha": "with --balance gradnorm"}
        return super().unread() | unread

    @model_validator(mode="after")
    def _temperatures_flatten(self) -> Self:
        if 0.0 < self.task_temperature < 1.0:
            raise ConfigError(
                f"task_temperature = {self.task_temperature:g} would draw large tasks more often than by their rows: "
                "give 1 (by rows) or more, or 0 for all tasks in every step"
            )
        return self

    @model_validator(mode="after")
    def _one_or_one_a_file(self) -> Self:
        files = len(self.source_data)
        for name in ("source_text", "source_label", "source_weight"):
            if (given := len(getattr(self, name))) not in (1, files):
                raise ConfigError(
                    f"{name} was given {given} times, source_data {files} times: give it once for all files, or once "
                    "for each"
                )
        return self

    def sources(self) -> list[tuple[str, str, str, float]]:
        """Return the file, the columns of text and label, and the weight of each task."""
        columns = (self.source_text, self.source_label, self.source_weight)
        files = len(self.source_data)
        each = (given if len(given) == files else given * files for given in columns)
        return list(zip(self.source_data, *each, strict=True))
