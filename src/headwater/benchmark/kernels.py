"""The one place where the benchmark meets the kernels in C++."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from headwater.cells.base import State
from headwater.cells.stack import RecurrentStack as PortableStack
from headwater.native import library
from headwater.native.layer import Packing, RecurrentLayer

_forced = ""


def level() -> str:
    """Return the instruction set in use, or ``"off"``."""
    return _forced or library.level()


def best_level() -> str:
    """Return the best instruction set that kernels and processor have, or ``"off"``."""
    if not library.kernels():
        return "off"
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(torch.backends.cpu.get_cpu_capability(), "plain")


def why() -> str:
    """Return why this level is in use."""
    return "no kernels were built, or they are switched off" if level() == "off" else "the best this processor has"


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Force a level within."""
    global _forced  # noqa: PLW0603 - gone when the kernels do this themselves
    before, _forced = _forced, wanted if library.kernels() else "off"
    try:
        yield
    finally:
        _forced = before


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product."""
    return library.product(a, b)


class RecurrentStack(PortableStack):
    """One layer in one direction that takes the kernels where they are in use."""

    def forward(
        self, x_BTD: Tensor, lengths_B: Tensor | None = None, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Run over whole sequences."""
        if level() == "off" or torch.is_autocast_enabled("cpu") or lengths_B is None:
            return super().forward(x_BTD, lengths_B, state)
        cell: Any = self.layers[0].fwd
        packing = Packing.of(lengths_B, x_BTD.shape[1])
        start = cell.init_state(len(x_BTD))
        y_NH, _ = RecurrentLayer.apply(  # type: ignore[no-untyped-call]
            {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}[type(cell).__name__],
            packing,
            x_BTD.flatten(0, 1)[packing.index_N],
            *(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh),
            start["h"],
            start.get("c"),
        )
        y_BTH = y_NH.new_zeros(x_BTD.shape[0] * x_BTD.shape[1], y_NH.shape[1])
        return y_BTH.index_copy(0, packing.index_N, y_NH).view(*x_BTD.shape[:2], -1), {}
