"""What is in use on this machine, why, and what would be gained by the better path."""

from __future__ import annotations

import resource
from importlib.util import find_spec

import torch
from rich.table import Table

from headwater import native
from headwater.benchmark.layers import training_paths
from headwater.benchmark.measure import OURS, Machine, Paths, one_thread, race
from headwater.benchmark.shapes import Shape
from headwater.cells.stack import TALL, WIDE
from headwater.config import Config
from headwater.records import Record

_LAYER = Shape("small", 10, 30, 32, 64)
_OPTIONAL = {
    "tokenizers": ("bpe", "byte-pair tokens"),
    "pyarrow": ("parquet", "Parquet files"),
    "huggingface_hub": ("hub", "checkpoints on the Hugging Face hub"),
    "opencc": ("chinese", "traditional and simplified Chinese"),
    "h5py": ("keras", "Keras's HDF5 files"),
    "zstandard": ("zstd", "compressed messages in federations"),
}
"""Packages, each with the extra that brings it and its purpose."""
_KEPT = "kept by the training commands for the next tensors; elsewhere `headwater.own_process.keep_memory` does it"
_KEEP = "MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=1073741824"
"""What glibc reads from the environment at the start of a process."""


class DoctorOptions(Config):
    """Options of `doctor`: none."""


class Diagnosis(Record):
    """What `doctor` found."""

    machine: Machine
    gain: float | None
    """Time of the portable path over that of the kernels for a small layer in training; None without kernels."""
    keeps_memory: bool
    """Whether large freed tensors stay with the process; if not, their pages are paid for at each use."""
    packages: dict[str, bool]
    """Which optional packages are there."""
    gpu: str | None
    """The GPU's name."""

    def __rich__(self) -> Table:
        """Return the lines for a terminal."""
        machine = self.machine
        lines = Table.grid(padding=(0, 2))
        lines.add_row("kernels", f"{machine.kernels}: {machine.kernels_why}")
        lines.add_row("gain", _gain(self.gain, machine))
        if machine.kernels != "off":
            lines.add_row("torch runs", f"full rows of an LSTM without gradients, or {TALL} of {WIDE} units and more")
        lines.add_row("processor", f"{machine.processor}, {machine.cores} cores, {machine.instructions}")
        lines.add_row("bfloat16", "yes: --precision bfloat16" if machine.bfloat16 else "no")
        lines.add_row("gpu", self.gpu or "no")
        lines.add_row("torch", f"{machine.torch}, threads: {machine.threads}")
        back = f"large freed tensors go back to the system, which costs time; to keep them:\n{_KEEP}"
        lines.add_row("memory", _KEPT if self.keeps_memory else back)
        for name, there in self.packages.items():
            extra, purpose = _OPTIONAL[name]
            lines.add_row(name, f"{'present' if there else f'missing: pip install headwater[{extra}]'} ({purpose})")
        return lines


def doctor(_: DoctorOptions) -> Diagnosis:
    """Look at this machine and time one small layer."""
    machine = Machine.look()
    with one_thread():
        gain = _measure_gain()
    return Diagnosis(
        machine=machine,
        gain=gain,
        keeps_memory=_keeps_memory(),
        packages={name: find_spec(name) is not None for name in _OPTIONAL},
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def _gain(gain: float | None, machine: Machine) -> str:
    if gain is None:
        return "not measured: there are no kernels to compare with"
    would = "would be" if machine.kernels == "off" else "are"
    return f"the kernels {would} {gain:.1f} times as fast as torch (a small LSTM)"


def _measure_gain() -> float | None:
    with native.using(native.best_level()):
        if native.level() == "off":
            return None
    train = training_paths("lstm", _LAYER, ("float32",))[OURS, "float32"]

    def at(level: str) -> None:
        with native.using(level):
            train()

    paths: Paths = {(OURS, "float32"): lambda: at(native.best_level()), ("portable", "float32"): lambda: at("off")}
    return race(paths, budget=1.0, part="layer", case=_LAYER.name, cell="lstm")[1].ratio


def _keeps_memory() -> bool:
    """Use and free 40 MiB a few times: whoever keeps them has, in some of the rounds, no page faults.

    By itself glibc gives back whatever has more than 32 MiB; smaller tensors depend on what lies behind them.
    """
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(10 * 2**20)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return min(faults) < 16  # pages of 4 KiB would be 10,240 faults, huge pages of 2 MiB still 20
