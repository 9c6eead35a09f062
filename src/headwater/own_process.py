"""Settings of processes that are Headwater's own: its commands and their workers."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path


class _State:
    settled = False


def settle() -> None:
    """Make this process Headwater's own."""
    keep_memory()
    prefer_onednn()
    _State.settled = True


def settled() -> bool:
    """Return whether this process is: those that it starts are then to be so too, for the same bits."""
    return _State.settled


def leads() -> bool:
    """Return whether this process is to speak: of those that torchrun has started, the first one alone."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


def keep_memory() -> bool:
    """Let this process keep the memory that it frees; return whether that could be had (glibc alone has it).

    By default each large tensor is given back to the system at once, and all its pages are fetched anew for the next
    one of its size: up to a third of a training step.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, mmap_threshold = -1, -3
    library = ctypes.CDLL(None)
    # Older releases refuse more than 32 MiB; then the other setting alone would do harm.
    if not any(library.mallopt(mmap_threshold, size) for size in (2**30, 2**25)):
        return False
    return bool(library.mallopt(trim_threshold, 2**30))


def prefer_onednn() -> bool:
    """Let oneDNN make torch's float32 products on AMD processors with AVX-512; return whether it does now.

    There MKL, torch's choice, runs its AVX2 code: up to 2.2 times slower. The setting allows bfloat16 too, which oneDNN
    takes on processors with matrix units (AMX) alone; the products are checked all the same.
    """
    import torch

    cpu = Path("/proc/cpuinfo")
    facts = cpu.read_text(encoding="utf-8") if cpu.exists() else ""
    # The setting holds for a GPU too, which would round.
    if "AuthenticAMD" not in facts or " avx512f " not in facts or " amx" in facts or torch.cuda.is_available():
        return False
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    a = torch.linspace(-1.0, 1.0, 64 * 64).view(64, 64).sin()
    exact = a.double() @ a.double()
    if float((a @ a - exact).norm() / exact.norm()) < 1e-5:
        return True
    torch.set_float32_matmul_precision(before)
    return False
