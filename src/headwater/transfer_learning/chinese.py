"""Traditional Chinese characters to simplified ones, by the optional package `opencc`."""

from __future__ import annotations

from collections.abc import Callable

EXTRA = "headwater[chinese]"
"""What brings the package."""


def simplifier() -> Callable[[str], str] | None:
    """Return what writes text in simplified characters; None where the package isn't installed."""
    try:
        import opencc
    except ImportError:
        return None
    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert
