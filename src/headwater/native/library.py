"""Finding and calling the kernels. `ctypes` lets go of the interpreter's lock for the time of a call."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from headwater.errors import ConfigError

SWITCH = "HEADWATER_KERNELS"
"""The environment variable that forces a level, or `off`."""
OFF = "off"
_INTERFACE = 3
"""What `headwater_interface` answers in a library whose entries take what is given here."""
LEVELS = ("plain", "avx2", "avx512", "avx512_bf16")
"""The instruction sets, from the plainest; on ARM the compiler makes NEON of the plain one."""


class _Layer(ctypes.Structure):
    _fields_ = (
        [(name, ctypes.c_long) for name in ("cell", "gates", "inputs", "hidden", "steps", "half")]
        + [("counts", ctypes.c_void_p), ("x", ctypes.c_void_p)]
        + [(name, ctypes.c_void_p) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")]
        + [(name, ctypes.c_void_p) for name in ("activations", "y", "c", "extra")]
    )


class _Gradients(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in ("y", "c", "activations", "extra", "x", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "h0", "c0")
    ]


class _State:
    """What is in use: changed by `using` alone."""

    off = False
    stale = False


def level() -> str:
    """Return the name of the instruction set in use, or `off`."""
    library = _library()
    return OFF if library is None or _State.off else LEVELS[library.headwater_level()]


def best_level() -> str:
    """Return the best instruction set that kernels and processor have, or `off` where no kernels were built."""
    library = _library()
    return OFF if library is None else LEVELS[library.headwater_best_level()]


def why() -> str:
    """Return why this level is in use, in a sentence."""
    if _library() is None and _State.stale:
        return "the kernels are those of another version: install again"
    if _library() is None:
        return "the kernels were not built: the installation found no C++ compiler"
    if level() == best_level():
        arm = platform.machine() in ("aarch64", "arm64")
        return "the best that this processor has" + (" (NEON)" if arm else "")
    who = SWITCH if os.environ.get(SWITCH) else "the program"
    return f"chosen by {who}; the processor has {best_level()}"


def usable(weight: Tensor) -> bool:
    """Return whether the kernels can compute with a weight here and now.

    They can't with other types and devices, in bfloat16 where the processor has no such products, and under the
    transforms of `torch.func`.
    """
    now = level()
    if now == OFF or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        half = torch.get_autocast_dtype("cpu") is torch.bfloat16
        if now != "avx512_bf16" or not half:
            return False
    return torch._C._functorch.peek_interpreter_stack() is None  # noqa: SLF001 - there is no public name


@contextmanager
def using(wanted: str) -> Iterator[None]:
    """Use a lower level than the processor's, or none (`off`), within; for the whole process, not for a thread.

    Raises:
        ConfigError: There is no such level here.
    """
    before, was_off = level(), _State.off
    _use(wanted)
    try:
        yield
    finally:
        if before != OFF:
            _use(before)
        _State.off = was_off


def _use(wanted: str) -> None:
    known = (OFF, *LEVELS[: LEVELS.index(best_level()) + 1]) if best_level() != OFF else (OFF,)
    if wanted not in known:
        raise ConfigError(f"no kernels of the level {wanted!r} here; there are: {', '.join(known)}")
    _State.off = wanted == OFF
    library = _library()
    if library is not None and wanted != OFF:
        library.headwater_use_level(LEVELS.index(wanted))


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    folder = Path(__file__).parent
    built = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").exists()]
    if not built:
        return None
    library = ctypes.CDLL(str(built[0]))
    if not _speaks_of_the_same(library):
        _State.stale = True
        return None
    size, pointer, number = ctypes.c_long, ctypes.c_void_p, ctypes.c_int
    library.headwater_product.argtypes = [
        *(size, size, size),
        *(pointer, size, size),
        *(pointer, size, size),
        *(pointer, number, number),
    ]
    library.headwater_linear_cross_entropy.argtypes = [*[size] * 4, *[pointer] * 6, number]
    library.headwater_pool.argtypes = [*[size] * 3, *[pointer] * 6, size, pointer]
    library.headwater_pool_backward.argtypes = [*[size] * 3, *[pointer] * 8, size, pointer]
    library.headwater_plan.argtypes = [pointer, size, size, *[pointer] * 6]
    library.headwater_plan.restype = size
    library.headwater_step_floats.argtypes = [size, size, size]
    library.headwater_step_floats.restype = size
    library.headwater_pack_step.argtypes = [*[size] * 3, *[pointer] * 5]
    library.headwater_pack_step.restype = None
    library.headwater_step.argtypes = [pointer, size, pointer, pointer]
    library.headwater_step.restype = None
    if wanted := os.environ.get(SWITCH, ""):
        known = (OFF, *LEVELS[: library.headwater_best_level() + 1])
        if wanted not in known:
            raise ConfigError(f"{SWITCH}={wanted}: expected one of {', '.join(known)}")
        _State.off = wanted == OFF
        library.headwater_use_level(LEVELS.index(wanted) if wanted != OFF else len(LEVELS))
    return library


def _speaks_of_the_same(library: ctypes.CDLL) -> bool:
    """Return whether a build has the entries and structures that are declared here; another would read anything."""
    try:
        said = library.headwater_interface(), library.headwater_layer_bytes(), library.headwater_gradients_bytes()
    except AttributeError:
        return False
    return said == (_INTERFACE, ctypes.sizeof(_Layer), ctypes.sizeof(_Gradients))


def kernels() -> ctypes.CDLL:
    """Return the library; only for callers who have asked for the `level`."""
    library = _library()
    assert library is not None  # noqa: S101 - see above
    return library


def product(a: Tensor, b: Tensor, *, half: bool = False) -> Tensor:
    """Return the matrix product of two float32 matrices.

    Args:
        a: (M, K); rows or columns are dense.
        b: (K, N); rows or columns are dense.
        half: Round both to bfloat16 first, where the level has such products; the sums are float32.

    Raises:
        ValueError: They are no float32 matrices of this machine's memory, or don't fit each other.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"no product of {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = _dense(a), _dense(b)
    for matrix in (a, b):
        if matrix.dtype != torch.float32 or matrix.device.type != "cpu":
            raise ValueError(f"the kernels can't multiply {matrix.dtype} on {matrix.device}")
    out = a.new_empty(a.shape[0], b.shape[1])
    check(
        kernels().headwater_product(
            *(a.shape[0], b.shape[1], a.shape[1]),
            *(a.data_ptr(), *a.stride()),
            *(b.data_ptr(), *b.stride()),
            *(out.data_ptr(), half, 1),
        )
    )
    return out


def _dense(matrix: Tensor) -> Tensor:
    """Return the matrix such that one of its strides is 1."""
    return matrix if 1 in matrix.stride() else matrix.contiguous()


def run_forward(numbers: tuple[int, ...], tensors: dict[str, Tensor | None]) -> None:
    """Run a layer forward; the names are those of `Layer` in kernels.cpp."""
    check(kernels().headwater_forward(ctypes.byref(_Layer(*numbers, **_pointers(tensors)))))


def run_backward(
    numbers: tuple[int, ...], tensors: dict[str, Tensor | None], gradients: dict[str, Tensor | None]
) -> None:
    """Run a layer backward; the names are those of `Layer` and `Gradients` in kernels.cpp."""
    layer, given = _Layer(*numbers, **_pointers(tensors)), _Gradients(**_pointers(gradients))
    check(kernels().headwater_backward(ctypes.byref(layer), ctypes.byref(given)))


def check(status: int) -> None:
    """Raise what an entry point's status says.

    Raises:
        MemoryError: There is none left.
    """
    if status:
        raise MemoryError("the recurrent kernels found no memory: use smaller batches")


def pointer(value: Tensor, *shape: int) -> int:
    """Return where a tensor lies, after a check: the kernels would read past anything else.

    Raises:
        ValueError: It has another shape, or isn't a dense float32 or int64 tensor in this machine's memory.
    """
    if shape and value.shape != shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} came where the kernels need {shape}")
    if value.dtype not in (torch.float32, torch.int64) or value.device.type != "cpu" or not value.is_contiguous():
        raise ValueError(f"the kernels can't read a tensor of type {value.dtype}, strides {value.stride()}")
    return value.data_ptr()


def _pointers(tensors: dict[str, Tensor | None]) -> dict[str, int | None]:
    return {name: None if value is None else pointer(value) for name, value in tensors.items()}
