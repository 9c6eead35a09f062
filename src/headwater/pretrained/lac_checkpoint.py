"""Baidu's LAC network as a checkpoint: its embedding and its two layers of bidirectional GRUs.

The tagging head and the conditional random field stay behind; `paddle_lac` runs the whole network.
"""

from __future__ import annotations

import torch

from headwater.checkpoint import Checkpoint, ModelConfig
from headwater.features.text import SPECIAL, TextFeaturizer, TextOptions
from headwater.lineage import Lineage, LineageEntry
from headwater.model import DropoutOptions, EncoderOptions
from headwater.pretrained.paddle_lac import UNKNOWN, LacNetwork, fold, read_lac
from headwater.weights import Weights


def lac_checkpoint() -> Checkpoint:
    """Read LAC from the installed package `jieba`, as an encoder of characters.

    Its vocabulary is that of the rows which training has moved. A character that LAC folds to another one, such as
    a full-width comma, gets a copy of the other's row: so the encoder computes what LAC computes on folded text.

    Raises:
        CheckpointError: jieba isn't installed, or its files are not the expected ones.
    """
    network = read_lac()
    tokens = _rows_by_token(network)
    embedding_VE = torch.from_numpy(network.embedding_VE)
    rows = [torch.zeros_like(embedding_VE[:1])]
    rows.append(embedding_VE[network.vocabulary.index(UNKNOWN)].unsqueeze(0))
    rows.append(rows[-1].expand(2, -1))
    rows.append(embedding_VE[list(tokens.values())])
    options = TextOptions(tokenizer="char", lowercase=True, min_count=2, vocabulary_size=len(tokens) + len(SPECIAL))
    config = ModelConfig(
        encoder=EncoderOptions(
            cell="gru_reset_before",
            embedding_size=embedding_VE.shape[1],
            hidden_size=network.layers[0][0]["weight_hh"].shape[1],
            layers=len(network.layers),
            bidirectional=True,
        ),
        vocabulary_size=len(tokens) + len(SPECIAL),
        dropout=DropoutOptions(),
        featurizer=options,
        task={"name": "representation"},
    )
    tensors: Weights = {"encoder.embedding.weight": torch.cat(rows)}
    for number, directions in enumerate(network.layers):
        for side, weights in zip(("fwd", "bwd"), directions, strict=True):
            for name, value in weights.items():
                tensors[f"encoder.stack.layers.{number}.{side}.{name}"] = torch.from_numpy(value).contiguous()
    entry = LineageEntry(name="jieba_lac", verb="import", method="PaddlePaddle LAC of jieba 0.42.1")
    return Checkpoint(config, TextFeaturizer(options, [*SPECIAL, *tokens]), tensors, Lineage(stages=[entry]))


def _rows_by_token(network: LacNetwork) -> dict[str, int]:
    """Return each usable token's row: its own if trained, else that of what LAC folds it to."""
    trained_V = network.trained_V  # a pass over the whole embedding: once, not for each token
    number = {token: row for row, token in enumerate(network.vocabulary) if token and trained_V[row]}
    found = {token: row for token, row in number.items() if token != UNKNOWN}
    for token in network.vocabulary:
        folded = fold(token)
        if token and token not in found and folded in number:
            found[token] = number[folded]
    return found
