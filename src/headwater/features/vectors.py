"""Word vectors from text files: GloVe (`word v1 .. vn`), word2vec and fastText (the same after a `count size` line)."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from headwater.errors import DataError


def read_vectors(path: Path, wanted: Mapping[str, int]) -> tuple[dict[int, np.ndarray], int]:
    """Read the vectors of the wanted words.

    Args:
        path: A text file, plain or .gz.
        wanted: Word to number; a word that stands only in lower case in the file is found too.

    Returns:
        Number to vector (E,) in float32, and E.

    Raises:
        DataError: The file is missing or a line isn't a word and E numbers.
    """
    found: dict[int, np.ndarray] = {}
    folded: dict[int, np.ndarray] = {}
    by_fold = {word.lower(): number for word, number in wanted.items()}
    size = 0
    for line_number, line in _lines(path):
        parts = line.rstrip().split(" ")
        if line_number == 1 and len(parts) == 2:
            continue
        size = size or len(parts) - 1
        # The word is what stands before the numbers: some of GloVe's are phrases such as ". . .".
        split = max(1, len(parts) - size)
        word, values = " ".join(parts[:split]), parts[split:]
        number, fold = wanted.get(word), by_fold.get(word)
        if number is None and fold is None:
            continue
        try:
            vector = np.array(values, dtype=np.float32)
        except ValueError as error:
            raise DataError(f"{path}, line {line_number}: expected a word and {size} numbers: {error}") from error
        if len(vector) != size or not np.isfinite(vector).all():
            raise DataError(f"{path}, line {line_number}: {len(vector)} numbers where {size} finite ones were expected")
        if number is not None:
            found[number] = vector
        elif fold is not None:
            folded.setdefault(fold, vector)
    if not size:
        raise DataError(
            f"{path} holds no vectors: expected lines of a word and its numbers (GloVe, word2vec, fastText)"
        )
    return folded | found, size


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as stream:
            yield from enumerate(stream, 1)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"word vectors {path} can't be read: {error}") from error
