"""Trained networks that packages carry do here what they were trained for; nothing of the packages is run."""

import importlib.metadata
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from headwater.importing import ImportOptions, import_weights
from headwater.records import StageRecord


def packaged(package, name):
    """Return the path of a file in an installed package; skip where there is none."""
    try:
        found = [file for file in importlib.metadata.files(package) or () if file.name == name]
    except importlib.metadata.PackageNotFoundError:
        found = []
    if not found:
        pytest.skip(f"{package} isn't installed")
    return found[0].locate()


GRAPHEMES = ("<pad>", "<unk>", "</s>", *"abcdefghijklmnopqrstuvwxyz")
PHONEMES = (
    *("<pad>", "<unk>", "<s>", "</s>"),
    *("AA0", "AA1", "AA2", "AE0", "AE1", "AE2", "AH0", "AH1", "AH2", "AO0", "AO1", "AO2", "AW0", "AW1", "AW2"),
    *("AY0", "AY1", "AY2", "B", "CH", "D", "DH", "EH0", "EH1", "EH2", "ER0", "ER1", "ER2", "EY0", "EY1", "EY2"),
    *("F", "G", "HH", "IH0", "IH1", "IH2", "IY0", "IY1", "IY2", "JH", "K", "L", "M", "N", "NG", "OW0", "OW1", "OW2"),
    *("OY0", "OY1", "OY2", "P", "R", "S", "SH", "T", "TH", "UH0", "UH1", "UH2", "UW", "UW0", "UW1", "UW2", "V", "W"),
    *("Y", "Z", "ZH"),
)
"""The order of g2p-en's phonemes."""


@pytest.fixture
def g2p(tmp_path):
    """The encoder and the decoder of g2p-en, and its output layer."""
    path = packaged("g2p_en", "checkpoint20.npz")
    parts = []
    for prefix, tokens in (("enc", GRAPHEMES), ("dec", PHONEMES)):
        (tmp_path / "v.json").write_text(json.dumps(tokens))
        given = {"prefix": prefix, "embedding": f"{prefix}_emb", "tokenizer": "char", "lowercase": prefix == "enc"}
        options = ImportOptions(out=tmp_path / prefix, vocabulary=tmp_path / "v.json", quiet=True, **given)
        parts.append(import_weights(path, options))
    with np.load(path, allow_pickle=False) as archive:
        return *parts, torch.from_numpy(archive["fc_w"]), torch.from_numpy(archive["fc_b"])


@torch.inference_mode()
def spell(word, encoder, decoder, weight, bias):
    """Return the phonemes of a word: greedy decoding from the encoder's last state."""
    reads, writes = encoder.model().encoder, decoder.model().encoder
    tokens = [*encoder.featurizer.encode(word), encoder.featurizer.numbers["<eos>"]]
    _, state = reads(torch.tensor([tokens]))
    token, found = decoder.featurizer.numbers["<bos>"], []
    for _ in range(20):
        y_1TH, state = writes(torch.tensor([[token]]), state=state)
        phoneme = PHONEMES[int((y_1TH[0, 0] @ weight.T + bias).argmax())]
        if phoneme == "</s>":
            break
        found.append(phoneme)
        token = decoder.featurizer.numbers[phoneme]
    return " ".join(found)


def test_g2p_ens_networks_know_how_words_sound(g2p):
    sounds = {"cat": "K AE1 T", "knight": "N AY1 T", "phone": "F OW1 N", "station": "S T EY1 SH AH0 N"}
    assert {word: spell(word, *g2p) for word in sounds} == sounds


TEXT = "What is the most interesting thing you have learned about the world in the last year?"


@torch.inference_mode()
def loss_of(weights, checkpoint, rows):
    """Return the mean loss of each character of the text after 40 others, in nats, under textgenrnn's own head."""
    with pytest.importorskip("h5py").File(weights) as file:
        attention_F = torch.from_numpy(file["attention/attention/attention_W:0"][:, 0])
        kernel_FV, bias_V = (torch.from_numpy(file[f"output/output/{name}:0"][()]) for name in ("kernel", "bias"))
    encoder, losses = checkpoint.model().encoder, []
    tokens_T = torch.tensor([checkpoint.featurizer.numbers[char] for char in TEXT])
    for end in range(40, len(TEXT)):
        x_1TE = encoder.embed(tokens_T[None, end - 40 : end])
        lower_1TH, _ = encoder.stack.layers[0](x_1TE, None, None, {})
        upper_1TH, _ = encoder.stack(x_1TE)
        all_TF = torch.cat([x_1TE, lower_1TH, upper_1TH], 2)[0]
        mean_F = (all_TF @ attention_F).softmax(0) @ all_TF
        losses.append(float(-(mean_F @ kernel_FV + bias_V).log_softmax(0)[rows[TEXT[end]]]))
    return np.mean(losses)


def test_textgenrnns_layers_read_english(tmp_path):
    pytest.importorskip("h5py")
    weights = packaged("textgenrnn", "textgenrnn_weights.hdf5")
    vocabulary = packaged("textgenrnn", "textgenrnn_vocab.json")
    options = {"prefix": "rnn_1,rnn_2", "tokenizer": "char", "lowercase": False, "vocabulary": vocabulary}
    checkpoint = import_weights(weights, ImportOptions(out=tmp_path / "m", quiet=True, **options))
    rows = json.loads(vocabulary.read_text())
    assert loss_of(weights, checkpoint, rows) < 1.5  # a uniform guess has 6.1
    name = "encoder.stack.layers.0.fwd.weight_ih"
    i, f, g, o = checkpoint.tensors[name].chunk(4)
    swapped = replace(checkpoint, tensors=checkpoint.tensors | {name: torch.cat([i, g, f, o])})
    assert loss_of(weights, swapped, rows) > 3
    assert any("never come out of the tokenizer (char): ' '" in note for note in StageRecord.load(tmp_path / "m").notes)
