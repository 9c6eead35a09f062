"""Options of the codecs."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field, model_validator

from headwater.config import Config, Several, one_of
from headwater.federated import CODECS
from headwater.registry import name_in, read_by

_READ_BY = {
    "keep": "--codec top_k or random_k",
    "rank": "--codec low_rank",
    "rotation_bits": "--codec or --down-codec rotation",
}
_FOR_UPDATES = ("sparse_rows", "low_rank", "top_k", "random_k", "ternary", "sign")
"""They leave out most of what weights are."""
_LAST = ("float16", "bfloat16", "int8", "int4", "ternary", "sign", "rotation")
"""They leave no float32 numbers to a codec behind them."""


class CodecOptions(Config):
    """How updates and weights are written."""

    codec: Several[Annotated[str, name_in("headwater.codecs", CODECS)]] = ()
    """What clients' updates go through, one or more in this order: `sparse_rows` (no rows of zeros), `low_rank`,
    `top_k` or `random_k`, then `float16`, `bfloat16`, `int8`, `int4`, `ternary`, `sign` or `rotation`."""
    down_codec: Annotated[str, name_in("headwater.codecs", CODECS, "none")] = "none"
    """What the server's weights go through: `float16`, `bfloat16`, `int8`, `int4` or `rotation`; it keeps them in full
    itself."""
    error_feedback: bool = False
    """Clients add what their codecs lose to the next update: for the codecs that are not right on average."""
    keep: Annotated[float, Field(gt=0.0, le=1.0)] = 0.01
    """Share of each tensor's numbers that `top_k` and `random_k` keep."""
    rank: Annotated[int, Field(ge=1)] = 4
    """Rank of `low_rank`'s factors."""
    rotation_bits: Annotated[int, one_of(1, 2, 4)] = 1
    """Bits of a number behind `rotation`; weights want 4."""

    def unread(self) -> dict[str, str]:
        """Each has codecs that read it."""
        down = () if self.down_codec == "none" else (self.down_codec,)
        read = read_by("headwater.codecs", CODECS, *self.codec, *down)
        without = {name: f"with {by}" for name, by in _READ_BY.items() if name not in read}
        return super().unread() | without | ({} if self.codec else {"error_feedback": "with --codec"})

    @model_validator(mode="after")
    def _codecs_fit(self) -> CodecOptions:
        if len(set(self.codec)) < len(self.codec):
            raise ValueError(f"codec names one twice: {', '.join(self.codec)}")
        for one, other in pairwise(self.codec):
            if one in _LAST:
                raise ValueError(f"codec: {one} leaves nothing for {other} to encode: put it last")
            if one in ("top_k", "random_k") and other in ("sparse_rows", "low_rank"):
                raise ValueError(f"codec: {one} leaves no matrix for {other} to encode: put {other} first")
        if self.down_codec in _FOR_UPDATES:
            raise ValueError(
                f"down_codec: {self.down_codec} leaves too little of weights: use float16, bfloat16, int8, int4 or "
                "rotation"
            )
        return self
