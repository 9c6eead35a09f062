"""Archives of `numpy.savez` as named tensors: numbers only, no pickled objects."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headwater.errors import CheckpointError
from headwater.pretrained.weight_file import EXPANSION
from headwater.weights import Weights


def load_numpy_archive(path: Path) -> Weights:
    """Return the arrays of an archive, plain or compressed; those that hold no numbers are left out.

    Raises:
        CheckpointError: It is damaged, holds objects, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = _read_members(archive, EXPANSION * path.stat().st_size + 2**20)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # zipfile and numpy raise several kinds
        raise CheckpointError(f"{path} isn't a whole numpy archive ({type(error).__name__}: {error})") from error
    return {name: value for name, value in arrays.items() if value is not None}


def _read_members(archive: zipfile.ZipFile, limit: int) -> dict[str, Tensor | None]:
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if sum(info.file_size for info in members) > limit:
        raise CheckpointError(f"it unpacks to more than {EXPANSION} times its size: refused")
    return {info.filename.removesuffix(".npy"): parse_npy(archive.read(info)) for info in members}


def parse_npy(data: bytes) -> Tensor | None:
    """Return the array of a `.npy` file (numpy.lib.format, versions 1 and 2); None where it holds no numbers.

    Raises:
        CheckpointError: It holds objects, which would have to be unpickled, or other sizes than its header says.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise CheckpointError("it holds pickled objects, which are never run: save arrays of numbers alone")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise CheckpointError(f"an array of {shape} and type {dtype} doesn't fit its {len(data)} bytes")
    if dtype.kind not in "fiu":
        return None
    values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if by_columns else "C")
    # Torch knows neither all of numpy's floating-point types nor foreign byte orders.
    return torch.from_numpy(np.array(values, np.float32 if dtype.kind == "f" else dtype.newbyteorder("="), order="C"))
