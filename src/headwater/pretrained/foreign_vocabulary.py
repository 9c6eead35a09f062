"""Other people's vocabularies: which token each row of an embedding belongs to.

Shapes: V vocabulary, E embedding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from headwater.errors import DataError
from headwater.features.text import BEGIN, END, PAD, SPECIAL, UNKNOWN, TextFeaturizer, TextOptions
from headwater.pretrained.weight_file import listed

SIZE_LIMIT = 2**26
"""Bytes of a vocabulary's file at most (64 MiB)."""
ALIASES = {
    **dict.fromkeys(("<pad>", "[pad]", "xxpad"), PAD),
    **dict.fromkeys(("<unk>", "[unk]", "<oov>", "[oov]", "xxunk"), UNKNOWN),
    **dict.fromkeys(("<bos>", "[bos]", "<sos>", "<s>", "xxbos"), BEGIN),
    **dict.fromkeys(("<eos>", "[eos]", "</s>", "xxeos"), END),
}
"""What others call the special tokens, in small letters."""


def read_vocabulary(path: Path, rows: int) -> dict[str, int]:
    """Read which row of the embedding each token has, in the order of the rows.

    Args:
        path: `.json`: a list of tokens in the order of the rows, or a dict of token to row, counted from 0. Any other
            suffix: text with one token a line. In a list an empty token stands for a row without one.
        rows: V, the rows of the embedding.

    Raises:
        DataError: It can't be read, or doesn't fit the embedding.
    """
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise DataError(f"{path} has more than {SIZE_LIMIT:,} bytes, too many for a vocabulary")
        text = path.read_bytes().decode("utf-8-sig")  # some editors put a mark at the start
        found = json.loads(text, object_pairs_hook=_dict) if path.suffix.lower() == ".json" else _lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the vocabulary {path} can't be read: {error}") from error
    if isinstance(found, list):
        if len(found) != rows:
            raise DataError(
                f"{path} has {len(found):,} tokens, the embedding has {rows:,} rows: give a token for each row, an "
                "empty one for a row without, or a JSON dict of token to row"
            )
        pairs = [(token, row) for row, token in enumerate(found) if token != ""]
    elif isinstance(found, dict):
        pairs = list(found.items())
    else:
        raise DataError(f"{path} holds neither a JSON list of tokens nor a JSON dict of token to row")
    return _checked(pairs, path, rows)


def _dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made: dict[str, object] = {}
    for token, row in pairs:
        if token in made:
            raise ValueError(f"the token {token[:40]!r} stands twice")
        made[token] = row
    return made


def _lines(text: str) -> list[str]:
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def _checked(pairs: Iterable[tuple[object, object]], path: Path, rows: int) -> dict[str, int]:
    made: dict[str, int] = {}
    for token, row in pairs:
        if not isinstance(token, str) or any("\ud800" <= char <= "\udfff" for char in token):
            raise DataError(f"{path}: {str(token)[:40]!r} is no token: expected text")
        if type(row) is not int or not 0 <= row < rows:
            raise DataError(f"{path}: the token {token[:40]!r} has the row {str(row)[:40]}, the embedding has {rows:,}")
        if token in made:
            raise DataError(f"{path}: the token {token[:40]!r} stands twice, in the rows {made[token]} and {row}")
        made[token] = row
    if len(set(made.values())) != len(made):
        raise DataError(f"{path} gives one row of the embedding to several tokens")
    return dict(sorted(made.items(), key=lambda pair: pair[1]))


def adopt(
    vocabulary: dict[str, int], embedding_VE: Tensor, options: TextOptions
) -> tuple[TextFeaturizer, Tensor, list[str]]:
    """Make the featurizer and put the rows into its order: the special tokens first.

    The padding's row is zero. An unknown token's is the source's own where it has one, else the mean of all tokens'
    rows; a beginning or end that the source lacks gets the unknown token's.

    Args:
        vocabulary: Token to row.
        embedding_VE: The source's embedding.
        options: How text becomes tokens; the size of the vocabulary is set here.

    Returns:
        The featurizer, the embedding of its tokens (V', E), and what a reader must know, a sentence each.

    Raises:
        DataError: There is no token but special ones.
    """
    special, tokens = _parted(vocabulary)
    if not tokens:
        raise DataError("the vocabulary has no tokens but special ones")
    rows_VE = embedding_VE[list(tokens.values())]
    unknown_E = embedding_VE[special[UNKNOWN]] if UNKNOWN in special else rows_VE.mean(0)
    marks = [embedding_VE[special[place]] if place in special else unknown_E for place in (BEGIN, END)]
    made_VE = torch.cat([torch.stack([torch.zeros_like(unknown_E), unknown_E, *marks]), rows_VE])
    size = len(SPECIAL) + len(tokens)
    fitted = options.model_copy(update={"vocabulary_size": max(size, options.vocabulary_size)})
    featurizer = TextFeaturizer(fitted, [*SPECIAL, *tokens])
    notes = [f"{len(vocabulary):,} of {len(embedding_VE):,} rows have a token."]
    if UNKNOWN not in special:
        notes.append("The vocabulary has no unknown token: the mean of all rows stands for it.")
    missed = [token for token in tokens if featurizer.tokens(token) != [token]]
    if missed:
        case = ", lowercase" if options.lowercase else ""
        notes.append(
            f"{len(missed):,} of {len(tokens):,} tokens never come out of the tokenizer ({options.tokenizer}{case}): "
            f"{listed(missed)}."
        )
    return featurizer, made_VE, notes


def adopt_biases(vocabulary: dict[str, int], bias_V: Tensor) -> Tensor:
    """Put the biases of a softmax over the rows into the order of the featurizer that `adopt` makes, (V',).

    Padding and the special tokens that the source doesn't know are never predicted by it: they get the least bias.
    """
    special, tokens = _parted(vocabulary)
    least = bias_V.min()
    marks = [bias_V[special[place]] if place in special else least for place in (UNKNOWN, BEGIN, END)]
    return torch.cat([torch.stack([least, *marks]), bias_V[list(tokens.values())]])


def _parted(vocabulary: dict[str, int]) -> tuple[dict[int, int], dict[str, int]]:
    """Return the rows of the special tokens by their numbers, and those of the others."""
    special = {SPECIAL.index(token): row for token, row in vocabulary.items() if token in SPECIAL}
    tokens: dict[str, int] = {}
    for token, row in vocabulary.items():
        place = ALIASES.get(token.lower())
        if token not in SPECIAL and (place is None or special.setdefault(place, row) != row):
            tokens[token] = row
    return special, tokens
