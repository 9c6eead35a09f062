"""The decoder of a language model whose softmax weights are the embedding's rows, in other people's files.

It is called ``decoder``, as by fastai and in PyTorch's examples.

Shapes: V vocabulary, E embedding, H hidden.
"""

from __future__ import annotations

import torch

from headwater.errors import CheckpointError
from headwater.pretrained.weight_file import Choice, WeightFile, floats, listed
from headwater.weights import Weights

WEIGHT, BIAS = "decoder.weight", "decoder.bias"


def tied_decoder(file: WeightFile, choice: Choice) -> tuple[Weights, list[str]]:
    """Return the weights of a head that computes the same, its biases still in the file's order, and what was read.

    The head projects the states to the embedding's size before it compares them with the rows; here that keeps them as
    they are.

    Raises:
        CheckpointError: There is no such decoder, or it reads something else.
    """
    rows, size = choice.embedding_VE.shape
    if len(choice.layers[0].directions) > 1 or choice.widths[-1] != size:
        raise CheckpointError(
            f"task = 'language_modeling': the decoder of a file reads {size} states of one direction, as many as the "
            f"embedding is wide; the last layer has {choice.widths[-1]} in {len(choice.layers[0].directions)}"
        )
    named = [name for name in file.tensors if f".{name}".endswith(f".{WEIGHT}")]
    tied = [name for name in named if torch.equal(file.tensors[name], file.tensors[choice.embedding])]
    if not tied:
        raise CheckpointError(
            f"task = 'language_modeling': no {WEIGHT} equals the embedding {choice.embedding!r} (named so: "
            f"{listed(named) or 'none'}), and a language model's softmax weights are its embedding: import it without "
            "--task, and make a decoder with headwater transfer --task language_modeling --head new"
        )
    bias_name = tied[0].removesuffix(WEIGHT) + BIAS
    bias_V = floats(file.tensors[bias_name], bias_name) if bias_name in file.tensors else torch.zeros(rows)
    if bias_V.shape != (rows,):
        raise CheckpointError(f"{bias_name!r} has the shape {tuple(bias_V.shape)}, the embedding has {rows:,} rows")
    hidden = choice.layers[-1].directions[0]["weight_hh"].shape[1]
    weights = {"project.weight": torch.eye(size, hidden), "project.bias": torch.zeros(size), "bias": bias_V}
    return weights, [tied[0], bias_name]
