"""Vocabulary remapping: each target token gets the best row that the source has for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

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


def remap(
    source: TextFeaturizer, rows_VE: Tensor, target: TextFeaturizer, texts: Sequence[str]
) -> tuple[Tensor, Coverage]:
    """Build the target's embedding from the source's.

    A token takes, in this order: the source's row of the same token (copied); of the same token in lower case, or
    else in the most frequent other case (folded); the mean of its characters' rows, for Chinese words of a source that
    knows all the characters (composed); the mean of all the source's rows (new; Howard and Ruder 2018, section 3.2).

    Args:
        source: The source's featurizer.
        rows_VE: The source's embedding.
        target: The target's featurizer.
        texts: The target's training texts, for the coverage by tokens.

    Returns:
        The target's embedding (V', E), and the coverage of the types and tokens of `texts`.
    """
    mean_E = rows_VE[len(SPECIAL) :].mean(0)
    folded = {token.lower(): number for token, number in reversed(source.numbers.items())}
    folded |= {token: number for token, number in source.numbers.items() if token == token.lower()}
    rows, kinds = [], {}
    for token in target.vocabulary:
        number = source.numbers.get(token)
        kind = "copied"
        if number is None:
            number, kind = folded.get(token.lower()), "folded"
        if number is not None:
            rows.append(rows_VE[number])
        elif _is_chinese(token) and all(char in source.numbers for char in token):
            rows.append(rows_VE[[source.numbers[char] for char in token]].mean(0))
            kind = "composed"
        else:
            rows.append(mean_E)
            kind = "new"
        kinds[token] = kind
    return torch.stack(rows), _coverage(target, texts, kinds)


def _is_chinese(token: str) -> bool:
    return all("\u3400" <= char <= "\u9fff" for char in token)


def _coverage(target: TextFeaturizer, texts: Sequence[str], kinds: dict[str, str]) -> Coverage:
    counts = Counter(token for text in texts for token in target.tokens(text) if token not in SPECIAL)
    types = Counter(kinds.get(token, "new") for token in counts)
    tokens = Counter[str]()
    for token, count in counts.items():
        tokens[kinds.get(token, "new")] += count
    return Coverage(
        target_types=len(counts),
        copied=types["copied"],
        folded=types["folded"],
        composed=types["composed"],
        new=types["new"],
        types_share=1 - types["new"] / max(1, types.total()),
        tokens_share=1 - tokens["new"] / max(1, tokens.total()),
    )
