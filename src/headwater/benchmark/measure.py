"""Taking times in turn, and the records that hold them."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Literal, Self

import torch

from headwater import native
from headwater.config import cores
from headwater.precision import has_bfloat16
from headwater.records import Record

Precision = Literal["float32", "bfloat16"]
Paths = Mapping[tuple[str, Precision], Callable[[], object]]
"""What to time, by name and precision."""

OURS = "headwater"
_SAMPLE = 2e-3  # seconds: shorter calls are timed several at once
_LEAST, _MOST = 3, 25


class Machine(Record):
    """What the figures were taken on."""

    processor: str
    instructions: str
    """What torch sees: `AVX512`, `AVX2`, `NO AVX`, ..."""
    cores: int
    load: float
    """How many processes wanted a core before the run, over the last minute."""
    python: str
    torch: str
    threads: int
    """Of torch, before the run."""
    kernels: str
    """The level in use: `off`, `plain`, `avx2`, ..."""
    kernels_why: str
    kernels_best: str
    """The best level that kernels and processor have; `off` where no kernels were built."""
    bfloat16: bool
    """Whether the processor computes in bfloat16."""

    @classmethod
    def look(cls) -> Self:
        """Return this machine's facts."""
        return cls(
            processor=_processor(),
            instructions=torch.backends.cpu.get_cpu_capability(),
            cores=cores(),
            load=round(os.getloadavg()[0], 2),
            python=platform.python_version(),
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            kernels=native.level(),
            kernels_why=native.why(),
            kernels_best=native.best_level(),
            bfloat16=has_bfloat16(torch.device("cpu")),
        )

    def precisions(self) -> tuple[Precision, ...]:
        """Return the types that the processor computes in."""
        return ("float32", "bfloat16") if self.bfloat16 else ("float32",)


class Row(Record):
    """One measured path."""

    part: Literal["product", "memory", "layer", "step", "fit", "round"]
    case: str
    """What was computed: all paths of one part, case and cell took turns."""
    cell: str = ""
    precision: Precision
    path: str
    """Who computed it: `headwater`, or what stands beside it."""
    seconds: list[float]
    """Of one call, repeat by repeat."""
    median_seconds: float
    ratio: float | None
    """This median over that of `headwater` in the same precision: above 1, `headwater` is faster."""
    flops: float = 0.0
    """Useful floating-point operations of one call; padding isn't useful. 0 where they weren't counted."""
    bytes: float = 0.0
    """The least traffic with memory of one call."""
    gflops: float
    """Useful GFLOP/s."""

    @property
    def gbytes(self) -> float:
        """GB/s of the least traffic."""
        return self.bytes / self.median_seconds / 1e9


def race(paths: Paths, *, budget: float, share: float = 1.0, **facts: Any) -> list[Row]:
    """Time the paths in turn, so that whatever else the machine does slows all of them alike.

    Args:
        paths: What to time; each is called once beforehand, to warm up.
        budget: Seconds to spend, about; three repeats are taken in any case.
        share: The part of a call that counts as one: 1/4 where a call takes four steps.
        facts: The fields of `Row` that all of them share.
    """
    calls = {key: max(1, math.ceil(_SAMPLE / _seconds(run, 1))) for key, run in paths.items()}
    taken: dict[tuple[str, Precision], list[float]] = {key: [] for key in paths}
    end = time.perf_counter() + budget
    for repeat in range(_MOST):
        if repeat >= _LEAST and time.perf_counter() > end:
            break
        for key, run in paths.items():
            taken[key].append(share * _seconds(run, calls[key]))
    medians = {key: median(times) for key, times in taken.items()}
    rows = []
    for (path, precision), times in taken.items():
        middle, ours = medians[path, precision], medians.get((OURS, precision))
        row = Row(
            path=path,
            precision=precision,
            seconds=times,
            median_seconds=middle,
            ratio=middle / ours if ours else None,
            gflops=facts.get("flops", 0.0) / middle / 1e9,
            **facts,
        )
        rows.append(row)
    return rows


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread within."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(run: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
