"""Archives of `numpy.savez` as named arrays: numbers and texts only, no pickled objects. No torch here."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from headwater.errors import DataError
from headwater.files import EXPANSION


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive, plain or compressed, in the machine's own byte order.

    Those that hold neither numbers, truth values nor texts are left out.

    Raises:
        DataError: It is missing or damaged, holds objects, or unpacks to too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_members(archive, EXPANSION * path.stat().st_size + 2**20)
    except FileNotFoundError as error:
        raise DataError(f"there is no file {path}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # zipfile and numpy raise several kinds
        raise DataError(f"{path} isn't a whole numpy archive ({type(error).__name__}: {error})") from error


def _read_members(archive: zipfile.ZipFile, limit: int) -> dict[str, np.ndarray]:
    members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
    if sum(info.file_size for info in members) > limit:
        raise DataError(f"it unpacks to more than {EXPANSION} times its size: refused")
    arrays = {info.filename.removesuffix(".npy"): parse_npy(archive.read(info)) for info in members}
    return {name: value for name, value in arrays.items() if value.dtype.kind in "fiubU"}


def parse_npy(data: bytes) -> np.ndarray:
    """Return the array of a `.npy` file (numpy.lib.format, versions 1 and 2), in the machine's own byte order.

    Raises:
        DataError: It holds objects, which would have to be unpickled, or other sizes than its header says.
    """
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(stream)
    if dtype.hasobject:
        raise DataError("it holds pickled objects, which are never run: save arrays of numbers alone")
    if math.prod(shape) * dtype.itemsize != len(data) - stream.tell():
        raise DataError(f"an array of {shape} and type {dtype} doesn't fit its {len(data)} bytes")
    values = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if by_columns else "C")
    return np.array(values, dtype.newbyteorder("="), order="C")
