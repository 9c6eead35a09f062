"""Vocabulary remapping: each target token gets the best row that the source has for it.

Shapes: V tokens of the source, V' of the target, E embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.features.text import SPECIAL, TextFeaturizer
from headwater.records import Coverage


def union_featurizer(source: TextFeaturizer, target: TextFeaturizer) -> TextFeaturizer:
    """Return a featurizer that splits as the target does and knows the tokens of both, the source's first.

    The source's tokens are kept because the target's test rows hold words that its few training rows don't.
    """
    known = source.numbers
    new = [token for token in target.vocabulary if token not in known]
    options = target.options.model_copy(
        update={"vocabulary_size": max(target.options.vocabulary_size, len(source.vocabulary) + len(new))}
    )
    return TextFeaturizer(options, [*source.vocabulary, *new], target.tokenizer)


@dataclass(frozen=True)
class _Match:
    """Where a token starts from.

    Attributes:
        kind: How it was found, a field of `Coverage`.
        numbers: The source's tokens whose mean row it takes.
    """

    kind: str
    numbers: tuple[int, ...]


class Remapping:
    """Where each token of a target starts from.

    A token takes, in this order: the source's row of the same token (copied); of the same token in lower case, or
    else in the most frequent other case (folded); the mean of its characters' rows, for Chinese words of a source that
    knows all the characters (composed); the mean of all the source's rows (new; Howard and Ruder 2018, section 3.2).

    Args:
        source: The source's featurizer.
        target: The target's featurizer.
    """

    def __init__(self, source: TextFeaturizer, target: TextFeaturizer) -> None:
        self._target = target
        find = _Finder(source)
        self._matches = {token: find(token) for token in target.vocabulary}

    def rows(self, rows_VE: Tensor) -> Tensor:
        """Return the target's embedding (V', E) from the source's."""
        mean_E = rows_VE[len(SPECIAL) :].mean(0)
        return torch.stack([self._mean(rows_VE, match, mean_E) for match in self._matches.values()])

    def biases(self, bias_V: Tensor) -> Tensor:
        """Return the target's biases of a softmax over the vocabulary, (V',), from the source's.

        A token that is no token of the source has the mean bias: how often a whole occurs its parts don't tell.
        """
        mean = bias_V[len(SPECIAL) :].mean()
        matches = self._matches.values()
        return torch.stack([bias_V[match.numbers[0]] if len(match.numbers) == 1 else mean for match in matches])

    def coverage(self, texts: Sequence[str]) -> Coverage:
        """Return how much of the types and tokens of the target's training texts the source knows."""
        counts = Counter(token for text in texts for token in self._target.tokens(text) if token not in SPECIAL)
        types, tokens = Counter[str](), Counter[str]()
        for token, count in counts.items():
            kind = self._matches[token].kind if token in self._matches else "new"
            types[kind] += 1
            tokens[kind] += count
        return Coverage(
            target_types=len(counts),
            copied=types["copied"],
            folded=types["folded"],
            composed=types["composed"],
            new=types["new"],
            types_share=1 - types["new"] / max(1, types.total()),
            tokens_share=1 - tokens["new"] / max(1, tokens.total()),
        )

    @staticmethod
    def _mean(rows_VE: Tensor, match: _Match, mean_E: Tensor) -> Tensor:
        if len(match.numbers) == 1:
            return rows_VE[match.numbers[0]]
        return rows_VE[list(match.numbers)].mean(0) if match.numbers else mean_E


class _Finder:
    """Finds where a token starts from, by what a source knows."""

    def __init__(self, source: TextFeaturizer) -> None:
        self._numbers = source.numbers
        self._folded = {token.lower(): number for token, number in reversed(source.numbers.items())}
        self._folded |= {token: number for token, number in source.numbers.items() if token == token.lower()}

    def __call__(self, token: str) -> _Match:
        if token in self._numbers:
            return _Match("copied", (self._numbers[token],))
        if (number := self._folded.get(token.lower())) is not None:
            return _Match("folded", (number,))
        if _is_chinese(token) and all(char in self._numbers for char in token):
            return _Match("composed", tuple(self._numbers[char] for char in token))
        return _Match("new", ())


def _is_chinese(token: str) -> bool:
    return all("\u3400" <= char <= "\u9fff" for char in token)
