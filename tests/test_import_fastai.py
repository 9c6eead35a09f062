"""AWD-LSTM as fastai saves it: layers of several widths, recurrent weights apart, a decoder tied to the embedding."""

import pytest
import torch
from foreign_weights import TEXTS, WORDS, bring_in, numbers, save, states_of, write_vocabulary
from helpers import TINY, toy_rows, write_csv
from torch import nn

from headwater.errors import CheckpointError
from headwater.features.text import BEGIN, END, PAD, UNKNOWN
from headwater.pretrained.fastai_names import as_one_module
from headwater.pretrained.silent_units import equally_wide
from headwater.records import StageRecord
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer

SIZE = 6
VOCABULARY = ("xxunk", "xxpad", "xxbos", *WORDS[3:])


class AwdLstm(nn.Module):
    """The network of fastai without its dropout; the last layer is as wide as the embedding."""

    def __init__(self, *widths, both=False):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(len(WORDS), SIZE)
        count = 2 if both else 1
        reads = [SIZE, *(count * width for width in widths)]
        self.rnns = nn.ModuleList(
            nn.LSTM(size, width, bidirectional=both, batch_first=True)
            for size, width in zip(reads, widths, strict=False)
        )
        self.bias = nn.Parameter(torch.empty(len(WORDS)))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def saved(self, prefix="0.", *, old=False):
        """Return the tensors as fastai names them; an old version keeps the weights that dropout has left, too."""
        rows = self.embedding.weight.data
        tensors = {f"{prefix}encoder.weight": rows, f"{prefix}encoder_dp.emb.weight": rows}
        for number, layer in enumerate(self.rnns):
            for name, value in layer.state_dict().items():
                recurrent = "weight_hh" in name
                tensors[
                    f"{prefix}rnns.{number}.{name}_raw" if recurrent else f"{prefix}rnns.{number}.module.{name}"
                ] = value
                if recurrent and old:
                    tensors[f"{prefix}rnns.{number}.module.{name}"] = value * 0.5
        return tensors

    def whole(self):
        """Return the tensors of the language model."""
        return self.saved() | {"1.decoder.weight": self.embedding.weight.data, "1.decoder.bias": self.bias.data}

    @torch.inference_mode()
    def states(self, row):
        """Return the states of one row of the last layer, (T, H)."""
        x_1TH = self.embedding(torch.tensor([row]))
        for layer in self.rnns:
            x_1TH, _ = layer(x_1TH)
        return x_1TH[0]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("widths", [(6,), (6, 6), (9, 7, 6), (4, 6)])
def test_layers_of_any_widths_compute_the_same(widths, old, tmp_path):
    network = AwdLstm(*widths)
    checkpoint = bring_in(save(network.saved("", old=old), tmp_path), lowercase=False)
    encoder = checkpoint.config.encoder
    assert (encoder.layers, encoder.hidden_size, encoder.embedding_size) == (len(widths), max(widths), SIZE)
    for text in TEXTS:
        made = states_of(checkpoint, text)
        torch.testing.assert_close(made[:, : widths[-1]], network.states(numbers(text)), atol=1e-6, rtol=0)
        assert not made[:, widths[-1] :].any()
    silent = [note for note in StageRecord.load(tmp_path / "model").notes if "silent" in note]
    assert bool(silent) == (len(set(widths)) > 1)


def test_both_directions_of_layers_of_several_widths_compute_the_same(tmp_path):
    network = AwdLstm(5, 3, both=True)
    checkpoint = bring_in(save(network.saved("0."), tmp_path))
    kept = [0, 1, 2, 5, 6, 7]
    for text in TEXTS:
        made = states_of(checkpoint, text)
        torch.testing.assert_close(made[:, kept], network.states(numbers(text)), atol=1e-6, rtol=0)


def test_it_becomes_a_language_model_with_the_same_probabilities(tmp_path):
    network = AwdLstm(8, SIZE)
    path = save(network.whole(), tmp_path)
    made = bring_in(path, vocabulary=write_vocabulary(tmp_path, VOCABULARY), task="language_modeling")
    known = made.featurizer.numbers
    assert made.config.task["name"] == "language_modeling"
    order = [0, 2, *range(3, len(WORDS))]  # the unknown token, the beginning, the words
    places = [UNKNOWN, BEGIN, *(known[word] for word in WORDS[3:])]
    with torch.inference_mode():
        model = made.model()
        for text in ("w3 w9 w4", "w11"):
            tokens_1T = torch.tensor([made.featurizer.encode(text)])
            logits_TV = model.head(model.encoder(tokens_1T)[0], None)[0]
            expected_TV = network.states(numbers(text)) @ network.embedding.weight.T + network.bias
            torch.testing.assert_close(logits_TV[:, places], expected_TV[:, order], atol=1e-5, rtol=0)
    bias = made.tensors["head.bias"]
    assert bias[PAD] == bias[END] == network.bias.min()
    assert any("Left in the file: '0.encoder.weight'." in note for note in StageRecord.load(tmp_path / "model").notes)


def test_what_it_became_is_tuned_on_other_text(tmp_path):
    path = save(AwdLstm(8, SIZE).whole(), tmp_path)
    made = bring_in(path, task="language_modeling")
    given = {k: v for k, v in TINY.items() if k not in ("embedding_size", "hidden_size")} | {"epochs": 2}
    data = write_csv(tmp_path / "rows.csv", toy_rows(240))
    options = TransferOptions(**given, data=data, task="language_modeling", out=tmp_path / "tuned")
    tuned = transfer(made, options)
    record = StageRecord.load(tmp_path / "tuned")
    assert [stage.verb for stage in tuned.lineage.stages] == ["import", "transfer"]
    assert record.metrics["valid"]["perplexity"] < record.metrics["before"]["perplexity"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.decoder.weight": torch.ones(12, SIZE)}, r"no decoder.weight equals the embedding .*'1.decoder.weight'"),
        ({"1.decoder.weight": None}, r"no decoder.weight equals .*named so: none.*--head new"),
        ({"1.decoder.bias": torch.ones(3)}, r"'1.decoder.bias' has the shape \(3,\), the embedding has 12 rows"),
    ],
)
def test_a_decoder_that_is_none_of_ours_is_refused(change, message, tmp_path):
    tensors = {name: value for name, value in (AwdLstm(8, SIZE).whole() | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        bring_in(save(tensors, tmp_path), task="language_modeling")


@pytest.mark.parametrize(("widths", "both"), [((SIZE, 8), False), ((3, 3), True)])
def test_a_decoder_reads_as_many_states_as_the_embedding_is_wide(widths, both, tmp_path):
    with pytest.raises(CheckpointError, match="as many as the embedding is wide; the last layer has"):
        bring_in(save(AwdLstm(*widths, both=both).whole(), tmp_path), task="language_modeling")


def test_a_decoder_without_biases_adds_nothing(tmp_path):
    tensors = AwdLstm(SIZE).whole()
    del tensors["1.decoder.bias"]
    assert not bring_in(save(tensors, tmp_path), task="language_modeling").tensors["head.bias"].any()


def test_names_of_other_modules_are_left_alone():
    one = torch.ones(1)
    other = {"cells.0.weight_ih_l0": one, "cells.0.weight_hh_l0": one, "head.0.weight_raw": one}
    assert as_one_module(other) == other


def test_names_that_mean_the_same_are_refused():
    one = torch.ones(1)
    with pytest.raises(CheckpointError, match="has a twin, 'rnns.weight_ih_l1'"):
        as_one_module({"rnns.1.weight_hh_l0_raw": one, "rnns.1.module.weight_ih_l0": one, "rnns.weight_ih_l1": one})


def test_layers_are_not_blown_up():
    def layer(reads, units):
        shapes = {"weight_ih": (units, reads), "weight_hh": (units, units), "bias_ih": (units,), "bias_hh": (units,)}
        return [{name: torch.zeros(shape) for name, shape in shapes.items()}]

    assert len(equally_wide([layer(4, 64), layer(64, 32)])) == 2
    with pytest.raises(CheckpointError, match="64, 1, 1, 1, 1, 1, 1, 1, 1 units.*4 times"):
        equally_wide([layer(4, 64), layer(64, 1), *[layer(1, 1)] * 7])
