"""Vocabulary remapping: each target token gets the best row that the source has for it.

Shapes: V tokens of the source, V' of the target, E embedding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from headwater.features.text import SPECIAL, TextFeaturizer
from headwater.records import COVERAGE_KINDS, Coverage
from headwater.transfer_learning.chinese import EXTRA, simplifier
from headwater.transfer_learning.matching import Match, Matcher, has_chinese
from headwater.weights import Weights


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


class Remapping:
    """Where each token of a target starts from; see `Matcher`.

    Args:
        source: The source's featurizer.
        target: The target's featurizer.
    """

    def __init__(self, source: TextFeaturizer, target: TextFeaturizer) -> None:
        self._target = target
        # The converter takes a while to load.
        missing = (token for token in target.vocabulary if token not in source.numbers)
        chinese = any(map(has_chinese, missing)) and any(map(has_chinese, source.vocabulary))
        simplify = simplifier() if chinese else None
        self._lacks_converter = chinese and simplify is None
        match = Matcher(source, target, simplify)
        self._matches = {token: match(token) for token in target.vocabulary}

    def rows(self, rows_VE: Tensor) -> Tensor:
        """Return the target's embedding (V', E) from the source's."""
        mean_E = rows_VE[len(SPECIAL) :].mean(0)
        return torch.stack([_mean(rows_VE, match, mean_E) for match in self._matches.values()])

    def decoder(self, weights: Weights) -> Weights:
        """Return the target's decoder from the source's, by the names of its own parameters."""
        remapped = {"bias": self._biases(weights["bias"])}
        if "weight" in weights:  # of a softmax that isn't tied to the embedding
            remapped["weight"] = self.rows(weights["weight"])
        return weights | remapped

    def _biases(self, bias_V: Tensor) -> Tensor:
        """Return the target's biases of a softmax over the vocabulary, (V',), from the source's.

        A new token, and one that is made of several, has the mean bias: how often a whole occurs its parts don't tell.
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
            normalized=types["normalized"],
            converted=types["converted"],
            composed=types["composed"],
            pieced=types["pieced"],
            new=types["new"],
            types_share=1 - types["new"] / max(1, types.total()),
            tokens_share=1 - tokens["new"] / max(1, tokens.total()),
            tokens=dict(tokens),
        )

    def notes(self, coverage: Coverage) -> list[str]:
        """Return what a reader should know of the fall-backs, a sentence each."""
        notes = []
        if coverage.copied + coverage.new < coverage.target_types:
            found = ", ".join(
                f"{kind} {types:,} ({coverage.tokens[kind]:,})"
                for kind in COVERAGE_KINDS
                if (types := getattr(coverage, kind))
            )
            notes.append(f"What the target's types (and tokens) start from: {found}.")
        new = sum(match.kind == "new" and has_chinese(token) for token, match in self._matches.items())
        if new and self._lacks_converter:
            notes.append(
                f"{new:,} Chinese tokens are new to the source: if one of the two texts is in traditional characters "
                f"and the other in simplified ones, pip install '{EXTRA}' and transfer again, to find them."
            )
        return notes


def _mean(rows_VE: Tensor, match: Match, mean_E: Tensor) -> Tensor:
    """Return the row that a token starts from."""
    if len(match.numbers) == 1:
        return rows_VE[match.numbers[0]]
    return rows_VE[list(match.numbers)].mean(0) if match.numbers else mean_E
