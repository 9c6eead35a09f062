"""Text to token numbers, with a vocabulary fitted on the training rows only."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from pydantic import Field

from headwater.config import Config
from headwater.errors import CheckpointError, DataError
from headwater.features.tokenizers import Tokenizer, TokenizerName, make_tokenizer

PAD, UNKNOWN, BEGIN, END = 0, 1, 2, 3
SPECIAL = ("<pad>", "<unk>", "<bos>", "<eos>")

Item = TypeVar("Item")

VOCABULARY_FILE = "vocabulary.json"
TOKENIZER_FILE = "tokenizer.json"


class TextOptions(Config):
    """How text becomes numbers."""

    tokenizer: TokenizerName = "word"
    """`word`, `char` (without white space), `char_space` (with it), `bpe` (byte-pair pieces) or `jieba` (Chinese
    words)."""
    lowercase: bool = True
    """Fold case before splitting."""
    direction: Literal["forward", "backward"] = "forward"
    """Read each row from its beginning, or `backward` from its end, as a backward language model does."""
    max_length: Annotated[int, Field(ge=1)] = 400
    """Tokens (of numeric rows: steps) a row at most; the rest of a longer row is cut off."""
    vocabulary_size: Annotated[int, Field(ge=10)] = 20_000
    """Tokens in the vocabulary at most, the most frequent ones."""
    min_count: Annotated[int, Field(ge=1)] = 2
    """How often a token must occur in the training rows to get a number of its own."""


class TextFeaturizer:
    """A fitted tokenizer and vocabulary.

    Args:
        options: How text becomes numbers.
        vocabulary: The tokens in the order of their numbers; the first four are special.
        tokenizer: A fitted one; by default a fresh one of the options' kind.
    """

    modality: ClassVar[Literal["text", "numeric"]] = "text"
    unit: ClassVar[str] = "tokens"

    def __init__(self, options: TextOptions, vocabulary: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self.options = options
        self.vocabulary = tuple(vocabulary)
        self.tokenizer = tokenizer or make_tokenizer(options.tokenizer)
        self.numbers = {token: number for number, token in enumerate(self.vocabulary)}
        # A stage reads the same rows several times (vocabulary, training, baselines); some tokenizers are slow.
        self._split = functools.lru_cache(maxsize=100_000)(self.tokenizer.split)

    @classmethod
    def fit(cls, texts: Sequence[str], options: TextOptions, tokenizer: Tokenizer | None = None) -> TextFeaturizer:
        """Learn the tokenizer (unless a fitted one is given) and the vocabulary from the training texts.

        Raises:
            DataError: No token occurs often enough.
        """
        folded = [text.lower() if options.lowercase else text for text in texts]
        if tokenizer is None:
            tokenizer = make_tokenizer(options.tokenizer)
            tokenizer.fit(folded, options.vocabulary_size)
        counts = Counter(token for text in folded for token in tokenizer.split(text))
        # Ties are broken by the token itself, so that the order never depends on the rows' order.
        ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        kept = [token for token, count in ranked if count >= options.min_count and token not in SPECIAL]
        if not kept:
            raise DataError(
                f"no token occurs {options.min_count} times in the {len(texts)} training texts: "
                "give more rows, or pretrain with a lower --min-count"
            )
        return cls(options, [*SPECIAL, *kept[: options.vocabulary_size - len(SPECIAL)]], tokenizer)

    @property
    def sizes(self) -> dict[str, Any]:
        """How the model's config names the width of what it reads."""
        return {"vocabulary_size": len(self.vocabulary)}

    def tokens(self, text: str) -> list[str]:
        """Return the tokens of a text as they are read, at most `max_length`; one unknown token where it has none."""
        return self.turned(self._pieces(text)[: self.options.max_length]) or [SPECIAL[UNKNOWN]]

    def turned(self, items: list[Item]) -> list[Item]:
        """Return what goes with tokens in the order of the text as they are read, and the other way round."""
        return items[::-1] if self.options.direction == "backward" else items

    def is_cut(self, text: str) -> bool:
        """Return whether a text has more than `max_length` tokens, so that the rest of it is never read."""
        return len(self._pieces(text)) > self.options.max_length

    def encode(self, text: str) -> list[int]:
        """Return the numbers of a text's tokens: at least one, at most `max_length`."""
        return [self.numbers.get(token, UNKNOWN) for token in self.tokens(text)]

    def encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the numbers of each text."""
        return [self.encode(text) for text in texts]

    def draw(self, rng: np.random.Generator, batch: int, time: int) -> np.ndarray:
        """Return random token numbers (B, T), with padding or an unknown token in the middle of each row."""
        tokens_BT = rng.integers(len(self.vocabulary), size=(batch, time))
        tokens_BT[:, time // 2] = rng.choice([PAD, UNKNOWN], size=batch)
        return tokens_BT

    def files(self) -> dict[str, str]:
        """Return what must be saved to have the same featurizer again: file name to content."""
        content = {VOCABULARY_FILE: json.dumps(self.vocabulary, ensure_ascii=False, indent=0) + "\n"}
        if state := self.tokenizer.state():
            content[TOKENIZER_FILE] = state
        return content

    def _pieces(self, text: str) -> list[str]:
        return self._split(text.lower() if self.options.lowercase else text)

    @classmethod
    def load(cls, folder: Path, options: TextOptions) -> TextFeaturizer:
        """Read the files of a featurizer from a checkpoint folder.

        Raises:
            CheckpointError: A file is missing or isn't a vocabulary.
        """
        path = folder / VOCABULARY_FILE
        try:
            vocabulary = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} can't be read ({error}): the checkpoint is incomplete") from error
        valid = isinstance(vocabulary, list) and all(isinstance(token, str) for token in vocabulary)
        if not valid or tuple(vocabulary[: len(SPECIAL)]) != SPECIAL or len(set(vocabulary)) != len(vocabulary):
            raise CheckpointError(
                f"{path} isn't a vocabulary: expected a JSON list of distinct strings that begins with "
                f"{', '.join(SPECIAL)}"
            )
        tokenizer = make_tokenizer(options.tokenizer)
        if (folder / TOKENIZER_FILE).exists():
            tokenizer.restore((folder / TOKENIZER_FILE).read_text(encoding="utf-8"))
        return cls(options, vocabulary, tokenizer)
