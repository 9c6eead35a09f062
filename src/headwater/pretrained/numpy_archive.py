"""Archives of `numpy.savez` as named tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from headwater.data.arrays import read_arrays
from headwater.errors import CheckpointError, DataError
from headwater.weights import Weights


def load_numpy_archive(path: Path) -> Weights:
    """Return the arrays of an archive, plain or compressed; those that hold no numbers are left out.

    Raises:
        CheckpointError: It is missing or damaged, holds objects, or unpacks to too much.
    """
    try:
        arrays = read_arrays(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    # Torch doesn't know all of numpy's floating-point types.
    return {
        name: torch.from_numpy(value.astype(np.float32) if value.dtype.kind == "f" else value)
        for name, value in arrays.items()
        if value.dtype.kind in "fiu"
    }
