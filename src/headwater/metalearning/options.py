"""Options of `metalearn`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from headwater.config import RunOptions, ValueColumns
from headwater.metalearning import METHODS
from headwater.metalearning.adaptation import AdaptOptions
from headwater.metalearning.episodes import EpisodeOptions
from headwater.model import Pooling
from headwater.new_model import NewModelOptions
from headwater.registry import name_in

ADAPTING = ("reptile", "fomaml")


class MetalearnOptions(AdaptOptions, EpisodeOptions, NewModelOptions, RunOptions):
    """Options of `metalearn`."""

    method: Annotated[str, name_in("headwater.meta_learning_methods", METHODS)] = "reptile"
    """`reptile` (Nichol et al. 2018: go some of the way to the adapted weights), `fomaml` (first-order MAML, Finn et
    al. 2017: follow the queries' gradient at the adapted weights) or `prototypes` (Snell et al. 2017: the nearest class
    mean wins; nothing adapts but the means)."""
    episodes: Annotated[int, Field(ge=1)] = 1000
    """Episodes to learn from."""
    meta_batch: Annotated[int, Field(ge=1)] = 1
    """Episodes whose directions are averaged to a step."""
    outer_lr: Annotated[float, Field(ge=0.0)] = 0.0
    """Rate of these steps, which falls to zero along a line: the share of the way with `reptile`, Adam's rate with the
    others; 0 takes 0.5 and 0.003."""
    test_episodes: Annotated[int, Field(ge=2)] = 100
    """Episodes of the held-out tasks to measure by."""
    pooling: Pooling = "concat"
    """How a new model's head sums up a row's states: last, max, mean, or all three."""

    def unread(self) -> dict[str, str]:
        """Class means take no steps."""
        adapts = self.method not in METHODS or self.method in ADAPTING
        without = {} if adapts else dict.fromkeys(AdaptOptions.model_fields, f"with --method {' or '.join(ADAPTING)}")
        return super().unread() | without

    def notes_from_checkpoint(self) -> list[str]:
        """Return a sentence for each option that says what a new model is like, though there is a checkpoint."""
        names = [*(name for name in NewModelOptions.model_fields if name not in ValueColumns.model_fields), "pooling"]
        return self.ignored(dict.fromkeys(names, "without a CHECKPOINT"))
