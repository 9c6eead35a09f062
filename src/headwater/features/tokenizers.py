"""Text to tokens: words, characters, byte-pair pieces, Chinese words.

A tokenizer turns a string into a list of strings; the vocabulary turns these into numbers. No torch here.
"""

from __future__ import annotations

import functools
import logging
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Protocol

from headwater.errors import CheckpointError, MissingDependency
from headwater.registry import lookup, name_in

TOKENIZERS = {
    "word": "headwater.features.tokenizers:WordTokenizer",
    "char": "headwater.features.tokenizers:CharTokenizer",
    "char_space": "headwater.features.tokenizers:SpacedCharTokenizer",
    "bpe": "headwater.features.tokenizers:BpeTokenizer",
    "jieba": "headwater.features.tokenizers:JiebaTokenizer",
}
TokenizerName = Annotated[str, name_in("headwater.tokenizers", TOKENIZERS)]

_WORD = re.compile(
    r"[\u3400-\u9fff\uf900-\ufaff]"  # a Chinese character stands alone
    r"|[^\W_\u3400-\u9fff\uf900-\ufaff]+(?:['\u2019][^\W\d_]+)?"  # a word, with its 's or n't
    r"|[^\w\s]"  # a punctuation mark
)
_CLOSING = frozenset(".,;:!?%)]}\u2026\u2019\u201d")
"""Marks that no space stands before."""
_OPENING = frozenset("([{$#\u2018\u201c")
"""Marks that no space stands behind."""
_CHINESE = re.compile(r"[\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff00-\uffef]")
"""Characters and their full-width marks, which no space stands beside."""
_WORD_BEGINS = "\u2581"
"""What a byte-pair piece starts with that begins a word."""


class Tokenizer(Protocol):
    """Splits text. `state` is what it learned, as JSON; empty for those that learn nothing."""

    def fit(self, texts: Iterable[str], size: int) -> None:
        """Learn from the training texts; `size` bounds the pieces."""

    def split(self, text: str) -> list[str]:
        """Return the tokens of a text; empty for blank text."""

    def join(self, tokens: Sequence[str]) -> str:
        """Return the text that the tokens make, spelled as usual as far as they tell."""

    def state(self) -> str:
        """Return what was learned."""

    def restore(self, state: str) -> None:
        """Take up what was learned."""


class _Stateless:
    """The half of a tokenizer that learns nothing."""

    def fit(self, texts: Iterable[str], size: int) -> None:
        """Learn nothing."""

    def state(self) -> str:
        """Return an empty state."""
        return ""

    def restore(self, state: str) -> None:
        """Take up nothing."""


class WordTokenizer(_Stateless):
    """Words, single Chinese characters and punctuation marks."""

    def split(self, text: str) -> list[str]:
        """Return the words of a text."""
        return _WORD.findall(unicodedata.normalize("NFC", text))

    def join(self, tokens: Sequence[str]) -> str:
        """Return the words with spaces between them, but for Chinese ones and where a mark belongs to a word."""
        return _spaced(tokens)


class CharTokenizer(_Stateless):
    """Characters; full-width forms become half-width (NFKC), white space is left out."""

    def split(self, text: str) -> list[str]:
        """Return the characters of a text."""
        return [char for char in unicodedata.normalize("NFKC", text) if not char.isspace()]

    def join(self, tokens: Sequence[str]) -> str:
        """Return the characters in a row."""
        return "".join(tokens)


class SpacedCharTokenizer(CharTokenizer):
    """Characters; full-width forms become half-width (NFKC), white space of any length becomes one space."""

    def split(self, text: str) -> list[str]:
        """Return the characters of a text."""
        return list(" ".join(unicodedata.normalize("NFKC", text).split()))


class JiebaTokenizer(_Stateless):
    """Chinese words by jieba's dictionary and its hidden Markov model for unknown words."""

    def split(self, text: str) -> list[str]:
        """Return the words of a text."""
        return [word for word in _jieba().lcut(unicodedata.normalize("NFKC", text)) if not word.isspace()]

    def join(self, tokens: Sequence[str]) -> str:
        """Return the words, with spaces between those that are not Chinese."""
        return _spaced(tokens)


def _spaced(words: Sequence[str]) -> str:
    """Join words with the spaces that Chinese and punctuation marks leave."""
    text = ""
    before = ""
    for word in words:
        chinese = _CHINESE.match(before[-1:]) or _CHINESE.match(word)
        glued = not text or before in _OPENING or word in _CLOSING or chinese
        text += word if glued else f" {word}"
        before = word
    return text


@functools.cache
def _jieba() -> Any:
    import jieba

    jieba.setLogLevel(logging.ERROR)
    segmenter = jieba.Tokenizer()
    # jieba unmarshals a dictionary cache from the common temporary folder, where any user could have put one.
    with tempfile.TemporaryDirectory() as private:
        segmenter.tmp_dir = private
        segmenter.initialize()
    return segmenter


class BpeTokenizer:
    """Byte-pair pieces (Sennrich et al. 2016, arXiv:1508.07909), learned from the training texts."""

    def __init__(self) -> None:
        self._model: Any = None

    def fit(self, texts: Iterable[str], size: int) -> None:
        """Learn at most `size` pieces."""
        library = _tokenizers()
        self._model = library.Tokenizer(library.models.BPE(unk_token="<unk>"))  # noqa: S106 - a token, no password
        self._model.pre_tokenizer = library.pre_tokenizers.Metaspace()
        self._model.normalizer = library.normalizers.NFC()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, special_tokens=["<unk>"], show_progress=False
        )
        self._model.train_from_iterator(texts, trainer)

    def split(self, text: str) -> list[str]:
        """Return the pieces of a text; a piece that begins a word starts with ``▁``."""
        if not text.strip():
            return []
        pieces: list[str] = self._model.encode(text).tokens
        return pieces

    def join(self, tokens: Sequence[str]) -> str:
        """Return the pieces in a row, with a space where a word begins."""
        return "".join(tokens).replace(_WORD_BEGINS, " ").strip()

    def state(self) -> str:
        """Return the merges, in the library's own JSON."""
        learned: str = self._model.to_str()
        return learned

    def restore(self, state: str) -> None:
        """Take up the merges."""
        library = _tokenizers()
        try:
            self._model = library.Tokenizer.from_str(state)
        except Exception as error:  # the library raises the bare class
            raise CheckpointError(f"the byte-pair tokenizer of this checkpoint can't be read: {error}") from error


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependency("tokenizers", extra="bpe", purpose="byte-pair tokenization") from error
    return tokenizers


def make_tokenizer(name: str) -> Tokenizer:
    """Return a fresh tokenizer of a name in the table or of an entry point in ``headwater.tokenizers``."""
    made: Tokenizer = lookup("headwater.tokenizers", TOKENIZERS, name)()
    return made
