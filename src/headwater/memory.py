"""The system allocator's settings, for processes that are Headwater's own."""

from __future__ import annotations

import ctypes
import platform


def keep_memory() -> bool:
    """Let this process keep the memory that it frees; return whether that could be had (glibc alone has it).

    By default each large tensor is given back to the system at once, and all its pages are fetched anew for the next
    one of its size: up to a third of a training step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold, large = -1, -3, 2**30
    library = ctypes.CDLL(None)
    return all([library.mallopt(mmap_threshold, large), library.mallopt(trim_threshold, large)])
