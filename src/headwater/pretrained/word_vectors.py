"""Word vectors that start an embedding: from a text file, or from a package that carries them.

Shapes: N words, E numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from headwater.features.vectors import read_vectors
from headwater.pretrained import PREFIX
from headwater.registry import lookup

VECTORS = {"glove_6b_50d": "headwater.pretrained.glove:read_glove"}
"""By the name after ``pretrained:``: returns words and their vectors (N, E), float32."""


def find_vectors(place: str, wanted: Mapping[str, int]) -> tuple[dict[int, np.ndarray], int]:
    """Return the vectors of the wanted words by number, and E; a word that has one in lower case only gets that.

    Args:
        place: A text file, or ``pretrained:NAME``.
        wanted: Word to number.

    Raises:
        DataError: The file can't be read, or the package can't be had.
        ConfigError: No package of this name is known.
    """
    if not place.startswith(PREFIX):
        return read_vectors(Path(place), wanted)
    words, vectors_NE = lookup("headwater.word_vectors", VECTORS, place.removeprefix(PREFIX))()
    rows = {word: row for row, word in reversed(list(enumerate(words)))}
    known = {number: rows.get(word, rows.get(word.lower())) for word, number in wanted.items()}
    return {number: vectors_NE[row] for number, row in known.items() if row is not None}, vectors_NE.shape[1]
