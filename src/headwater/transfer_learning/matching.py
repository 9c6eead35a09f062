"""Which of a source's tokens a target's token starts from: itself, another spelling, its parts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from headwater.features.text import SPECIAL, UNKNOWN, TextFeaturizer

Spelling = Callable[[str], str]
"""Returns what all spellings of a token have in common."""


@dataclass(frozen=True)
class Match:
    """Where a token starts from.

    Attributes:
        kind: How it was found, one of `headwater.records.COVERAGE_KINDS`.
        numbers: The source's tokens whose mean row it takes; none where it is new.
    """

    kind: str
    numbers: tuple[int, ...] = ()


class Matcher:
    """Finds where a target's token starts from, in this order.

    - copied: the source's own token, the one that it reads where the two split text in different ways;
    - folded: in lower case, or else in the most frequent other case;
    - normalized: in another form of the same characters, full-width letters for one (Unicode's NFKC), in any case;
    - converted: in traditional or simplified Chinese characters;
    - composed: of a Chinese word's characters, where the source knows all of them;
    - pieced: what the source's tokenizer splits the token's text into, where the source knows all of that. Letters by
      themselves say nothing of a word, so no more than half of the pieces may be single ones;
    - new.

    Args:
        source: The source's featurizer.
        target: The target's featurizer.
        simplify: Returns Chinese text in simplified characters; None where nothing does.
    """

    def __init__(self, source: TextFeaturizer, target: TextFeaturizer, simplify: Spelling | None) -> None:
        self._source, self._target = source, target
        self._split_alike = source.options.tokenizer == target.options.tokenizer
        spellings: dict[str, Spelling] = {"folded": str.lower, "normalized": _normalized}
        if simplify:
            spellings["converted"] = lambda token: simplify(_normalized(token))
        self._spellings = [(kind, spell, _by_spelling(source, spell)) for kind, spell in spellings.items()]

    def __call__(self, token: str) -> Match:
        """Return where a token starts from."""
        return self._read(token) or self._spelled(token) or self._composed(token) or self._pieced(token) or Match("new")

    def _read(self, token: str) -> Match | None:
        # To byte-pair pieces, "kind" may be what ends "mankind"; the word is "▁kind".
        if self._split_alike:
            return None
        text = self._text(token)
        pieces = self._source.tokens(text)
        number = self._source.numbers.get(pieces[0], UNKNOWN)
        whole = len(pieces) == 1 and number >= len(SPECIAL) and self._source.tokenizer.join(pieces) == text
        return Match("copied", (number,)) if whole else None

    def _text(self, token: str) -> str:
        return self._target.tokenizer.join([token])

    def _spelled(self, token: str) -> Match | None:
        if token in self._source.numbers:
            return Match("copied", (self._source.numbers[token],))
        for kind, spell, numbers in self._spellings:
            if (number := numbers.get(spell(token))) is not None:
                return Match(kind, (number,))
        return None

    def _composed(self, token: str) -> Match | None:
        if not _is_chinese(token):
            return None
        found = [match for char in token if (match := self._spelled(char))]
        whole = len(found) == len(token)
        return Match("composed", tuple(number for match in found for number in match.numbers)) if whole else None

    def _pieced(self, token: str) -> Match | None:
        pieces = self._source.tokens(self._text(token))
        numbers = tuple(self._source.numbers.get(piece, UNKNOWN) for piece in pieces)
        if UNKNOWN in numbers:
            return None
        letters = sum(self._is_letter(piece) for piece in pieces)
        return Match("pieced", numbers) if len(pieces) == 1 or 2 * letters <= len(pieces) else None

    def _is_letter(self, piece: str) -> bool:
        text = self._source.tokenizer.join([piece])
        return len(text) < 2 and not _is_chinese(text)


def has_chinese(text: str) -> bool:
    """Return whether there is a Chinese character in a text."""
    return any("\u3400" <= char <= "\u9fff" for char in text)


def _is_chinese(text: str) -> bool:
    """Return whether a text consists of Chinese characters."""
    return bool(text) and all(map(has_chinese, text))


def _normalized(token: str) -> str:
    # What was a letter in a circle before may be a capital now.
    return unicodedata.normalize("NFKC", token.lower()).lower()


def _by_spelling(source: TextFeaturizer, spell: Spelling) -> dict[str, int]:
    """Return the token of each spelling: the one that is spelled so, else the most frequent of those that could be."""
    tokens = [(spell(token), token, number) for token, number in source.numbers.items() if number >= len(SPECIAL)]
    numbers = {spelling: number for spelling, _, number in reversed(tokens)}
    return numbers | {spelling: number for spelling, token, number in tokens if spelling == token}
