"""Measures a peer from within: wall and CPU seconds of each round, start-up and peak memory of its whole process tree.

CPU seconds stand beside wall seconds because a busy machine stretches only the latter.
"""

import argparse
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch

from workloads import VARIANTS, new_model, sample_loss, workload


class Run:
    """One run of a peer: its command line, its workload and its clock.

    A peer calls `mark` once before the first round and once after each round, then `finish`.

    Attributes:
        workload: What to train.
        variant: How: one of the peer's variants.
    """

    def __init__(self, description: str, variants: tuple[str, ...] = VARIANTS) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--workload", default="tiny", help="S, M, XS or tiny; -gru or -rnn for another cell")
        parser.add_argument("--variant", choices=variants, default=variants[0])
        parser.add_argument("--rounds", type=int, help="measured rounds; default: the workload's")
        parser.add_argument("--warmup", type=int, help="rounds before them; default: the workload's")
        parser.add_argument("--row", type=Path, help="write the figures to this file, as JSON, too")
        parser.add_argument("--parameters", type=Path, help="save the final parameters to this file (.npy)")
        self._options = parser.parse_args()
        changes = {name: getattr(self._options, name) for name in ("rounds", "warmup")}
        self.workload = workload(self._options.workload, **{k: v for k, v in changes.items() if v is not None})
        self.variant = self._options.variant
        self.total_rounds = self.workload.warmup + self.workload.rounds
        self._walls: list[float] = []
        self._cpus: list[float] = []
        self._last: tuple[float, float] | None = None
        self._startup = 0.0
        self._own_cpu = 0.0
        self._peak = 0
        threading.Thread(target=self._watch_memory, daemon=True).start()

    def mark(self) -> None:
        """End a round; the time that this takes counts to none."""
        ended, own = time.perf_counter(), time.thread_time()
        cpu = _tree_cpu_seconds() - self._own_cpu
        if self._last is None:
            self._startup = time.time() - psutil.Process().create_time()
        else:
            self._walls.append(ended - self._last[0])
            self._cpus.append(cpu - self._last[1])
        self._own_cpu += time.thread_time() - own
        self._last = time.perf_counter(), cpu

    def finish(self, state: Mapping[str, torch.Tensor], **facts: object) -> None:
        """Report the figures and the final parameters, which have the names of the reference model."""
        self._peak = max(self._peak, _tree_pss())
        model = new_model(self.workload)
        model.load_state_dict(state)
        parameters = torch.cat([value.flatten() for value in model.state_dict().values()]).numpy()
        warmup = self.workload.warmup
        row = {
            "workload": self.workload.name,
            "variant": self.variant,
            "wall": [round(x, 4) for x in self._walls[warmup:]],
            "cpu": [round(x, 4) for x in self._cpus[warmup:]],
            "warmup": round(sum(self._walls[:warmup]), 2),
            "startup": round(self._startup, 2),
            "peak_mb": round(self._peak / 2**20),
            "loss": round(sample_loss(self.workload, model), 6),
            **facts,
        }
        print(json.dumps(row))
        if self._options.row:
            self._options.row.write_text(json.dumps(row))
        if self._options.parameters:
            np.save(self._options.parameters, parameters)

    def _watch_memory(self) -> None:
        while True:
            self._peak = max(self._peak, _tree_pss())
            time.sleep(1.0)


def _tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _tree_cpu_seconds() -> float:
    total = time.process_time()  # finer than what the system tells of other processes
    for process in _tree():
        with suppress(psutil.Error):  # it may have ended meanwhile; then it counts among its parent's children
            times = process.cpu_times()
            total += times.children_user + times.children_system
            if process.pid != os.getpid():
                total += times.user + times.system
    return total


def _tree_pss() -> int:
    """Return the bytes in memory, a page that n processes share counted as an n-th in each."""
    total = 0
    for process in _tree():
        with suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss
    return total
