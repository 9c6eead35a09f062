"""Importing: other people's recurrent weights as a checkpoint that every stage can go on from.

Shapes: V vocabulary, E embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from headwater.cells import CELLS
from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.config import RunOptions
from headwater.errors import CheckpointError
from headwater.features.text import TextOptions
from headwater.features.tokenizers import TOKENIZERS
from headwater.files import sha256_file
from headwater.model import MOST_UNITS, DropoutOptions, EncoderOptions
from headwater.pretrained.foreign_vocabulary import adopt, adopt_biases, read_vocabulary
from headwater.pretrained.tied_decoder import tied_decoder
from headwater.pretrained.weight_file import Choice, choose, describe, read_weight_file
from headwater.records import DataUse
from headwater.registry import name_in
from headwater.stage import Outcome, run_stage

FIXED_TOKENIZERS = {name: place for name, place in TOKENIZERS.items() if name != "bpe"}
"""Those that learn nothing: what others have learned is not in their weights."""


class ImportOptions(RunOptions):
    """Options of `import`."""

    vocabulary: Path
    """The tokens of the embedding's rows: a JSON list, a JSON dict of token to row, or text with one token a line."""
    tokenizer: Annotated[str, name_in("headwater.tokenizers", FIXED_TOKENIZERS)] = "word"
    """What the tokens are: `word`, `char` or `jieba` (Chinese words)."""
    lowercase: bool = True
    """Fold case before splitting."""
    max_length: Annotated[int, Field(ge=1)] = 400
    """Tokens a row at most; the rest of a longer row is cut off."""
    prefix: str = ""
    """The recurrent layers to take, where the file has several stacks: the layer's name (torch: what stands before
    `.weight_ih_l0`, or `.` where nothing does), or several with commas between, the first layer first."""
    embedding: str = ""
    """The name of the embedding, where it can't be found by name and size."""
    cell: Annotated[str, name_in("headwater.cells", CELLS, "auto")] = "auto"
    """What the layers are, where the file doesn't tell: `lstm`, `gru`, `gru_reset_before`, `rnn` (tanh), `rnn_relu`;
    `auto` takes what the file says."""
    task: Literal["representation", "language_modeling"] = "representation"
    """What to make: a `representation`, the encoder alone, or a language model (`language_modeling`), with the file's
    decoder, whose weights must be the embedding's."""
    inexact: bool = False
    """Import too what can't be shown to compute the same as its source."""


class _Run(ImportOptions):
    """The options with the file: a record tells it, and a run is resumed with the same one only."""

    weights: Path


def import_weights(weights: str | Path, options: ImportOptions) -> Checkpoint:
    """Make a checkpoint of a file of weights: an encoder without a head, to be transferred, or a language model.

    Args:
        weights: A file in one of the formats of `headwater.pretrained.weight_file.FORMATS`.
        options: What to take from it.

    Returns:
        The checkpoint, as written to ``options.out``. Its record says what matched and what was left.

    Raises:
        HeadwaterError: The file, the vocabulary, the options or the output folder can't be used.
    """
    run = _Run(**options.model_dump(), weights=Path(weights))
    run_stage("import", run, lambda _: _work(run))
    return Checkpoint.load(options.out)


def _work(options: _Run) -> Outcome:
    file = read_weight_file(options.weights)
    cell = "" if options.cell == "auto" else options.cell
    choice = choose(file, prefix=options.prefix, embedding=options.embedding, cell=cell)
    if choice.doubts and not options.inexact:
        raise CheckpointError(
            f"{options.weights} can't be shown to be imported exactly: {'; '.join(choice.doubts)}. Add --inexact to "
            "take the weights all the same"
        )
    encoder = _encoder(choice)
    tokens = read_vocabulary(options.vocabulary, len(choice.embedding_VE))
    text = TextOptions(tokenizer=options.tokenizer, lowercase=options.lowercase, max_length=options.max_length)
    featurizer, embedding_VE, notes = adopt(tokens, choice.embedding_VE, text)
    head, decoder = tied_decoder(file, choice) if options.task == "language_modeling" else ({}, [])
    config = ModelConfig(
        encoder=encoder,
        vocabulary_size=len(featurizer.vocabulary),
        dropout=DropoutOptions(),
        featurizer=featurizer.options,
        task={"name": options.task},
    )
    tensors = {"encoder.embedding.weight": embedding_VE} | {f"head.{name}": value for name, value in head.items()}
    if head:
        tensors["head.bias"] = adopt_biases(tokens, head["bias"])
    for number, layer in enumerate(choice.layers):
        for side, weights in zip(("fwd", "bwd"), layer.directions, strict=False):
            tensors |= {f"encoder.stack.layers.{number}.{side}.{name}": value for name, value in weights.items()}
    uses = [
        DataUse(role="source", path=str(path), sha256=sha256_file(path), rows=len(tokens))
        for path in (options.weights, options.vocabulary)
    ]
    facts = {
        "device": "cpu",
        "method": options.weights.suffix.removeprefix(".").lower(),
        "data": uses,
        "notes": [*describe(file, choice, decoder), *notes],
    }
    return Outcome(Checkpoint(config, featurizer, tensors), facts)


def _encoder(choice: Choice) -> EncoderOptions:
    first = choice.layers[0].directions
    embedding_size, hidden_size = choice.embedding_VE.shape[1], first[0]["weight_hh"].shape[1]
    for what, size in (("embedding", embedding_size), ("recurrent layers", hidden_size)):
        if not 1 <= size <= MOST_UNITS:
            raise CheckpointError(f"the {what} of the file: {size:,} units, where an encoder takes 1 to {MOST_UNITS:,}")
    return EncoderOptions(
        cell=choice.cell,
        embedding_size=embedding_size,
        hidden_size=hidden_size,
        layers=len(choice.layers),
        bidirectional=len(first) == 2,
    )
