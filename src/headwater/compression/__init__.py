"""Compression: smaller weights. A new method is a function from weights to stored tensors and a row here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headwater.registry import lookup

if TYPE_CHECKING:
    from headwater.weights import Weights

COMPRESSORS = {"int8": "headwater.compression.int8:quantize"}


def compressor(name: str) -> Callable[[Weights], Weights]:
    """Return the compressor of a name in the table or of an entry point in ``headwater.compressors``."""
    found: Callable[[Weights], Weights] = lookup("headwater.compressors", COMPRESSORS, name)
    return found
