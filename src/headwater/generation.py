"""Text from a language model, token after token.

Shapes: V vocabulary, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from headwater.cells.stream import Stream
from headwater.checkpoint import Checkpoint
from headwater.config import Config
from headwater.errors import ConfigError
from headwater.features.featurizer import text_featurizer
from headwater.features.text import BEGIN, END, PAD, SPECIAL, UNKNOWN, TextFeaturizer
from headwater.model import SequenceModel
from headwater.tasks.language_modeling import LanguageModeling

_NEVER = [PAD, UNKNOWN, BEGIN]
"""Tokens that stand for no text."""


class GenerateOptions(Config):
    """Options of `generate`."""

    prompt: str = ""
    """What each text begins with, or ends with where the model reads backward."""
    length: Annotated[int, Field(ge=1)] = 50
    """Tokens to add at most; a text ends before where the model ends it."""
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Divides the logits: below 1 what is likely becomes likelier; 0 takes the likeliest token each time."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw among this many likeliest tokens only (Fan et al. 2018, arXiv:1805.04833); 0 draws among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the fewest likeliest tokens only that have this probability together (Holtzman et al. 2020,
    arXiv:1904.09751)."""
    count: Annotated[int, Field(ge=1)] = 1
    """Texts to write."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seeds every draw; the same seed gives the same texts."""


def generate(checkpoint: Checkpoint, options: GenerateOptions) -> list[str]:
    """Write texts with a language model.

    Returns:
        As many texts as were asked for; each begins with the prompt, as the model's tokenizer has read it. A backward
        model's ends with it.

    Raises:
        ConfigError: The model is no language model, or the prompt is longer than a row that it reads.
    """
    if not isinstance(checkpoint.config.make_task(), LanguageModeling):
        raise ConfigError(
            f"a {checkpoint.config.task['name']} model writes no text: give a language model, "
            "made by headwater pretrain or transfer --task language_modeling"
        )
    featurizer, model = text_featurizer(checkpoint.featurizer), checkpoint.model()
    prompt = _read(featurizer, options.prompt)
    writer = _Writer(model, [featurizer.numbers.get(token, UNKNOWN) for token in prompt])
    generator = torch.Generator().manual_seed(options.seed)
    texts = []
    for _ in range(options.count):
        added = [featurizer.vocabulary[number] for number in writer.write(options, generator)]
        texts.append(featurizer.tokenizer.join(featurizer.turned([*prompt, *added])))
    return texts


def draw(logits_V: Tensor, options: GenerateOptions, generator: torch.Generator) -> int:
    """Return a token drawn by its logits, tempered and cut off as the options say."""
    logits_V = logits_V.double().index_fill(0, torch.tensor(_NEVER), -torch.inf)
    if not options.temperature:
        return int(logits_V.argmax())
    shares_V = ((logits_V - logits_V.max()) / options.temperature).softmax(0)
    ranked_K, tokens_K = shares_V.sort(descending=True, stable=True)
    if options.top_k:
        ranked_K, tokens_K = ranked_K[: options.top_k], tokens_K[: options.top_k]
    if options.top_p < 1:
        before_K = ranked_K.cumsum(0) - ranked_K
        tokens_K = tokens_K[before_K < options.top_p * ranked_K.sum()]
    # Each token of the vocabulary has a noise of its own, whatever its rank: so two ways to compute the same logits,
    # which differ by rounding, draw the same text (Gumbel's trick with exponential noise).
    noise_V = torch.empty_like(shares_V).exponential_(generator=generator)
    kept_V = torch.zeros_like(shares_V).index_copy(0, tokens_K, shares_V[tokens_K])
    return int((kept_V / noise_V).argmax())


class _Writer:
    """A language model that has read the beginning of a text and goes on from there, as often as it is asked to."""

    def __init__(self, model: SequenceModel, begun: list[int]) -> None:
        self._model = model
        self._stream = Stream(model.encoder.stack)
        for token in [BEGIN, *begun]:
            logits_V = self._read(token)
        self._start = self._stream.state(), logits_V

    def write(self, options: GenerateOptions, generator: torch.Generator) -> Iterator[int]:
        """Yield the tokens after the beginning, up to the end of the text."""
        state, logits_V = self._start
        self._stream.restore(state)
        for _ in range(options.length):
            token = draw(logits_V, options, generator)
            if token == END:
                return
            yield token
            logits_V = self._read(token)

    @torch.inference_mode()
    def _read(self, token: int) -> Tensor:
        """Return the logits of the token after this one."""
        y_H = self._stream.step(self._model.encoder.embed(torch.tensor(token)))
        logits_V: Tensor = self._model.head(y_H, None)
        return logits_V


def _read(featurizer: TextFeaturizer, prompt: str) -> list[str]:
    if featurizer.is_cut(prompt):
        raise ConfigError(
            f"the prompt has more than the {featurizer.options.max_length} tokens of a row of this model: shorten it"
        )
    tokens = featurizer.tokens(prompt)
    return [] if tokens == [SPECIAL[UNKNOWN]] else tokens  # what a text without tokens is read as
