"""Finding and calling the kernels. `ctypes` lets go of the interpreter's lock for the time of a call."""

from __future__ import annotations

import ctypes
import os
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

SWITCH = "HEADWATER_KERNELS"
"""The environment variable that forces a path: `off`, or the name of a level."""
LEVELS = ("plain", "avx2", "avx512")


class _Layer(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_long) for name in ("cell", "gates", "hidden", "steps")]
        + [("counts", ctypes.c_void_p)]
        + [(name, ctypes.c_void_p) for name in ("weight_hh", "bias_n", "h0", "c0", "activations", "y", "c", "extra")]
    )


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "c", "activations", "extra", "h0", "c0")]


@lru_cache(maxsize=1)
def kernels() -> ctypes.CDLL | None:
    """Return the loaded library, or None where it isn't there or is switched off."""
    wanted = os.environ.get(SWITCH, "")
    if wanted == "off":
        return None
    folder = Path(__file__).parent
    built = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").exists()]
    if not built:
        return None
    library = ctypes.CDLL(str(built[0]))
    if wanted in LEVELS:
        library.headwater_use_level(LEVELS.index(wanted))
    return library


def level() -> str:
    """Return the name of the instruction set in use, or `off`."""
    library = kernels()
    return LEVELS[library.headwater_level()] if library else "off"


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product of two float32 matrices of any strides."""
    out = a.new_zeros(a.shape[0], b.shape[1])
    library = kernels()
    assert library is not None  # noqa: S101 - the callers have asked
    sizes = [a.shape[0], b.shape[1], a.shape[1]]
    _check(
        library.headwater_product(*map(ctypes.c_long, sizes), *_matrix(a), *_matrix(b), ctypes.c_void_p(out.data_ptr()))
    )
    return out


def run_forward(numbers: tuple[int, int, int, int], tensors: dict[str, Tensor | None]) -> None:
    """Run a layer forward; see `Layer` in the source."""
    library = kernels()
    assert library is not None  # noqa: S101 - the callers have asked
    _check(library.headwater_forward(ctypes.byref(_layer(numbers, tensors))))


def run_backward(
    numbers: tuple[int, int, int, int], tensors: dict[str, Tensor | None], gradients: dict[str, Tensor | None]
) -> None:
    """Run a layer backward; see `Gradients` in the source."""
    library = kernels()
    assert library is not None  # noqa: S101 - the callers have asked
    given = _Gradients(**{name: _pointer(value) for name, value in gradients.items()})
    _check(library.headwater_backward(ctypes.byref(_layer(numbers, tensors)), ctypes.byref(given)))


def _layer(numbers: tuple[int, int, int, int], tensors: dict[str, Tensor | None]) -> _Layer:
    return _Layer(*numbers, **{name: _pointer(value) for name, value in tensors.items()})


def _matrix(value: Tensor) -> tuple[ctypes.c_void_p, ctypes.c_long, ctypes.c_long]:
    return ctypes.c_void_p(value.data_ptr()), ctypes.c_long(value.stride(0)), ctypes.c_long(value.stride(1))


def _pointer(value: Tensor | None) -> int | None:
    if value is None:
        return None
    assert value.is_contiguous()  # noqa: S101 - the kernels read plain rows
    assert value.dtype in (torch.float32, torch.int64)  # noqa: S101
    return value.data_ptr()


def _check(status: int) -> None:
    if status:
        raise MemoryError("the recurrent kernels found no memory: use smaller batches")
