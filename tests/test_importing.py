"""Other people's weights compute here what they computed there, or they are refused."""

import json

import pytest
import torch
from foreign_weights import (
    SAVE,
    TEXTS,
    WORDS,
    Network,
    bring_in,
    numbers,
    save,
    states_of,
    write_vocabulary,
)
from helpers import TINY, toy_rows, write_csv
from torch import nn

from headwater import importing
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.errors import CheckpointError, ConfigError, DataError, HeadwaterError
from headwater.features.text import BEGIN, END, PAD, SPECIAL, UNKNOWN
from headwater.importing import ImportOptions, import_weights
from headwater.pretrained import weight_file
from headwater.pretrained.weight_file import FORMATS, WeightFile
from headwater.records import StageRecord
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer

CELLS = {
    "lstm": (nn.LSTM, {}, "auto"),
    "gru": (nn.GRU, {}, "auto"),
    "rnn": (nn.RNN, {}, "rnn"),
    "rnn_relu": (nn.RNN, {"nonlinearity": "relu"}, "rnn_relu"),
}


def assert_equal_states(checkpoint, network):
    for text in TEXTS:
        torch.testing.assert_close(states_of(checkpoint, text), network.states(numbers(text)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", SAVE)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [{"layers": 2, "both": True}, {"layers": 3}, {"bias": False}])
def test_torchs_modules_compute_the_same_here(kind, cell, shape, tmp_path):
    module, options, named = CELLS[cell]
    network = Network(module, **shape, **options)
    checkpoint = bring_in(save(network.state_dict(), tmp_path, kind), cell=named)
    assert checkpoint.config.encoder.cell == cell
    assert checkpoint.config.task == {"name": "representation"}
    assert_equal_states(checkpoint, network)


def test_a_lone_cell_and_g2ps_names_are_one_layer(tmp_path):
    network = Network(nn.GRU)
    short = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
    tensors = {f"enc_{short[name]}": value for name, value in network.rnn.state_dict().items()}
    tensors |= {f"dec_{short[name]}": value + 1 for name, value in network.rnn.state_dict().items()}
    tensors |= {"enc_emb": network.embedding.weight.data, "dec_emb": network.embedding.weight.data + 1}
    path = save(tensors, tmp_path, "npz")
    with pytest.raises(ConfigError, match=r"2 recurrent stacks, 'enc', 'dec'.*--prefix"):
        bring_in(path)
    with pytest.raises(ConfigError, match="'enc_emb', 'dec_emb' could be the embedding"):
        bring_in(path, prefix="enc")
    assert_equal_states(bring_in(path, prefix="enc", embedding="enc_emb"), network)
    record = StageRecord.load(tmp_path / "model")
    assert "Left in the file: 'dec_w_ih', 'dec_w_hh', 'dec_b_ih', 'dec_b_hh', 'dec_emb'." in record.notes


def test_a_stack_without_a_name_is_called_by_a_point(tmp_path):
    network = Network(nn.GRU)
    tensors = {"embedding.weight": network.embedding.weight.data} | network.rnn.state_dict()
    path = save(tensors | network.rnn.state_dict(prefix="twin."), tmp_path)
    with pytest.raises(ConfigError, match=r"2 recurrent stacks, '\.', 'twin'"):
        bring_in(path)
    assert_equal_states(bring_in(path, prefix="."), network)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("a,b", ["a,b"]),
        ("c_", ["c_"]),
        (" d ", [" d "]),
        ("d", ["d"]),
        ("d.", ["d"]),
        ("c_, d.,.", ["c_", "d", ""]),
        (".,a,d", None),
        ("a", None),
    ],
)
def test_every_stack_can_be_named(given, taken):
    file = WeightFile({}, dict.fromkeys(["a,b", "c_", " d ", "d", ""]), "")
    if taken is not None:
        assert weight_file._stack_names(file, given) == taken
        return
    with pytest.raises(ConfigError, match=r"prefix = 'a': no such stack.*; there are 'a,b', 'c_', ' d ', 'd', '\.'"):
        weight_file._stack_names(file, given)


def test_stacks_are_put_on_top_of_each_other_in_the_order_given(tmp_path):
    lower, upper = Network(nn.LSTM, both=True), Network(nn.LSTM, both=True, seed=1)
    upper.rnn = nn.LSTM(10, 5, bidirectional=True, batch_first=True)
    parts = {"top": upper.rnn, "bottom": lower.rnn, "embedding": lower.embedding}
    tensors = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    path = save(tensors, tmp_path, "safetensors")
    with pytest.raises(CheckpointError, match=r"layer 1 has a weight_ih of \(20, 6\)"):
        bring_in(path, prefix="top,bottom")
    checkpoint = bring_in(path, prefix="bottom,top")
    with torch.inference_mode():
        expected = upper.rnn(lower.states(numbers(TEXTS[2])).unsqueeze(0))[0][0]
    torch.testing.assert_close(states_of(checkpoint, TEXTS[2]), expected, atol=1e-6, rtol=0)


def test_what_surrounds_the_weights_is_looked_through(tmp_path):
    network = Network(nn.GRU, layers=2)
    half = {name: value.double() if "hh" in name else value for name, value in network.state_dict().items()}
    around = {"epoch": 3, "best": 0.5, "done": True, "words": list(WORDS), "state": {"model": half, "none": None}}
    checkpoint = bring_in(save(around, tmp_path))
    assert_equal_states(checkpoint, network)
    (matched, left, *_) = StageRecord.load(tmp_path / "model").notes
    assert (
        matched
        == "Matched: 2 gru x 5 units in 'state.model.rnn', and the embedding 'state.model.embedding.weight' (12 x 6)."
    )
    assert left == "Left in the file: 'state.model.head.weight', 'state.model.head.bias'."


def test_weights_that_lie_in_one_buffer_are_parted(tmp_path):
    network = Network(nn.LSTM, layers=2)
    tensors = network.state_dict()
    buffer = torch.cat([value.flatten() for value in tensors.values()])
    parts = buffer.split([value.numel() for value in tensors.values()])
    views = {name: part.view(value.shape) for (name, value), part in zip(tensors.items(), parts, strict=True)}
    assert_equal_states(bring_in(save(views | {"tied": views["embedding.weight"]}, tmp_path)), network)


def test_the_command_prints_what_matched_and_its_checkpoint_is_transferred(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = Network(nn.LSTM, both=True)
    save(network.state_dict(), tmp_path)
    write_vocabulary(tmp_path)
    assert main(["import", "weights.pt", "--vocabulary", "vocabulary.json", "--out", "model", "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Matched: 1 bidirectional lstm x 5 units in 'rnn', and the embedding 'embedding.weight' (12 x 6)." in said
    assert "Left in the file: 'head.weight', 'head.bias'." in said
    assert "The cells compute the same." in said
    record = StageRecord.load(tmp_path / "model")
    assert (record.verb, record.method, [use.rows for use in record.data]) == ("import", "pt", [12, 12])
    assert record.config["weights"] == "weights.pt"
    rows = toy_rows(80)
    object.__setattr__(rows, "inputs", [f"w{n % 12} w{n % 5} {text}" for n, text in enumerate(rows.texts)])
    data = write_csv(tmp_path / "rows.csv", rows)
    given = {k: v for k, v in TINY.items() if k not in ("embedding_size", "hidden_size")} | {"epochs": 1}
    made = transfer(Checkpoint.load("model"), TransferOptions(**given, data=data, method="init", out=tmp_path / "new"))
    assert [stage.verb for stage in made.lineage.stages] == ["import", "transfer"]
    assert made.config.encoder == Checkpoint.load("model").config.encoder
    assert StageRecord.load(tmp_path / "new").coverage.copied == len(WORDS)


def test_options_come_from_a_file_and_a_journey_imports_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(Network(nn.GRU).state_dict(), tmp_path)
    write_vocabulary(tmp_path)
    stage = '[[stage]]\nname = "theirs"\nverb = "import"\nvocabulary = "vocabulary.json"\n'
    (tmp_path / "v.toml").write_text('vocabulary = "vocabulary.json"\n')
    assert main(["import", "weights.pt", "--config", "v.toml", "--out", "model", "--quiet"]) == 0
    (tmp_path / "j.toml").write_text(stage + 'from = "weights.pt"\n')
    assert main(["run", "j.toml", "--out", "runs", "--jobs", "1", "--quiet"]) == 0
    assert Checkpoint.load("runs/theirs").identity == Checkpoint.load("model").identity
    for given, message in (("", "import starts from a file: add from = 'FILE'"), ('from = "none.pt"', "is no file")):
        (tmp_path / "j.toml").write_text(stage + given)
        assert main(["run", "j.toml", "--out", "more"]) == 2
        assert message in capsys.readouterr().err


def test_a_resumed_import_is_that_of_the_same_file(tmp_path):
    path = save(Network(nn.GRU).state_dict(), tmp_path)
    identity = bring_in(path).identity
    assert bring_in(path, resume=True).identity == identity
    save(Network(nn.GRU, seed=1).state_dict(), tmp_path)
    with pytest.raises(ConfigError, match="the content of weights isn't what"):
        bring_in(path, resume=True)


# What is refused


def without(name):
    return lambda tensors: tensors.pop(name)


def put(name, value):
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (without("rnn.bias_hh_l1"), {}, "'rnn' lacks bias_hh_l1"),
        (without("rnn.weight_hh_l0_reverse"), {}, "'rnn' lacks weight_hh_l0_reverse"),
        (without("rnn.weight_ih_l0"), {}, "'rnn' lacks weight_ih_l0"),
        (without("embedding.weight"), {}, "no matrix of 6 columns is called an embedding"),
        (put("rnn.weight_hh_l0", torch.zeros(20, 4)), {}, r"a weight_hh of \(20, 4\)"),
        (put("rnn.weight_hh_l0", torch.zeros(19, 5)), {}, r"a weight_hh of \(19, 5\)"),
        (put("rnn.weight_hh_l0", torch.zeros(20)), {}, r"a weight_hh of \(20,\)"),
        (put("rnn.weight_ih_l1", torch.zeros(20, 9)), {}, r"layer 1 has a weight_ih of \(20, 9\).*\(20, 10\)"),
        (put("rnn.weight_hh_l1", torch.zeros(15, 5)), {}, "the layers mix cells"),
        (put("rnn.weight_hh_l1", torch.full((20, 5), torch.nan)), {}, "aren't finite"),
        (put("rnn.weight_hh_l1", torch.zeros(20, 5, dtype=torch.int8)), {}, "is of torch.int8"),
        (put("rnn.weight_hr_l1", torch.zeros(20, 5)), {}, "projects its states"),
        (put("rnn_weight_ih_l0", torch.zeros(20, 5)), {}, "has a twin"),
        (put("embedding.weight", torch.zeros(12, 7)), {}, "named so: 'embedding.weight'"),
        (put("embedding.weight", torch.full((12, 6), torch.inf)), {}, "'embedding.weight' holds numbers"),
        (None, {"embedding": "head.weight"}, "'head.weight' has 10 columns"),
        (None, {"embedding": "rnn.weight_ih_l0"}, "no matrix has this name"),
        (None, {"embedding": "head.wieght"}, "did you mean 'head.weight'"),
        (None, {"prefix": "rnm"}, "did you mean 'rnn'"),
        (None, {"cell": "gru"}, "the file says that the layers are 'lstm'"),
        (None, {"tokenizer": "bpe"}, "unknown name 'bpe' among the tokenizers"),
    ],
)
def test_weights_that_make_no_encoder_are_refused(change, options, message, tmp_path):
    tensors = dict(Network(nn.LSTM, layers=2, both=True).state_dict())
    if change:
        change(tensors)
    path = save(tensors, tmp_path)
    with pytest.raises(HeadwaterError, match=message):
        bring_in(path, **options) if "tokenizer" not in options else ImportOptions.parse(
            options | {"out": "x", "vocabulary": "x"}
        )
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "model.partial").exists()


def test_more_layers_than_an_encoder_takes_are_refused(tmp_path):
    network = Network(nn.RNN, layers=2)
    upper = {name: value for name, value in network.state_dict().items() if name.endswith("_l1")}
    tensors = dict(network.state_dict())
    for number in range(2, 65):
        tensors |= {name.replace("_l1", f"_l{number}"): value for name, value in upper.items()}
    with pytest.raises(CheckpointError, match="there are 65 layers, an encoder takes 64"):
        bring_in(save(tensors, tmp_path), cell="rnn")


@pytest.mark.parametrize("size", [0, 20_000])
def test_an_embedding_of_a_size_that_no_encoder_has_is_refused(size, tmp_path):
    tensors = dict(Network(nn.GRU).state_dict())
    tensors |= {"embedding.weight": torch.zeros(12, size), "rnn.weight_ih_l0": torch.zeros(15, size)}
    with pytest.raises(
        CheckpointError, match=f"embedding of the file: {size:,} units, where an encoder takes 1 to 16,384"
    ):
        bring_in(save(tensors, tmp_path))


def test_more_units_than_an_encoder_takes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "MOST_UNITS", 6)
    tensors = Network(nn.GRU).state_dict() | nn.GRU(6, 7).state_dict(prefix="rnn.")
    with pytest.raises(CheckpointError, match="recurrent layers of the file: 7 units"):
        bring_in(save(tensors, tmp_path))


def test_a_simple_rnns_activation_must_be_said(tmp_path):
    path = save(Network(nn.RNN).state_dict(), tmp_path)
    with pytest.raises(ConfigError, match=r"with 1 gates are: add --cell rnn \(tanh\) or rnn_relu"):
        bring_in(path)
    with pytest.raises(ConfigError, match="'gru' has 3 gates, the layers of the file have 1"):
        bring_in(path, cell="gru")


@pytest.mark.parametrize("kind", SAVE)
def test_a_file_cut_short_is_refused(kind, tmp_path):
    path = save(Network(nn.LSTM).state_dict(), tmp_path, kind)
    data = path.read_bytes()
    for length in (0, 1, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"weights\.\w+ (isn't a whole|is damaged)"):
            bring_in(path)


@pytest.mark.parametrize("kind", SAVE)
def test_a_file_without_recurrent_layers_is_refused(kind, tmp_path):
    path = save({"conv.weight": torch.zeros(2, 2)}, tmp_path, kind)
    with pytest.raises(CheckpointError, match="no recurrent layers under .*its tensors are 'conv.weight'"):
        bring_in(path)


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_refuses_what_is_none_of_it(suffix, tmp_path):
    if suffix in (".h5", ".hdf5"):
        pytest.importorskip("h5py")
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"PK\x03\x04 nothing of the kind")
    with pytest.raises(CheckpointError, match=rf"weights\{suffix} isn't a whole"):
        bring_in(path)


def test_a_file_that_is_not_there_or_of_another_kind_is_refused(tmp_path, capsys):
    path = tmp_path / "weights.ckpt"
    with pytest.raises(CheckpointError, match=r"weights\.ckpt is no file"):
        bring_in(path)
    path.write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"weights\.ckpt: unknown name '\.ckpt' among the weight formats"):
        bring_in(path)
    assert main(["import", str(path), "--out", str(tmp_path / "model")]) == 2
    assert "the option 'vocabulary' is missing" in capsys.readouterr().err


# Vocabularies


def imported(folder, vocabulary, *, name="v.json", **options):
    path = save(Network(nn.GRU).state_dict(), folder)
    (folder / name).write_text(vocabulary if isinstance(vocabulary, str) else json.dumps(vocabulary))
    return bring_in(path, vocabulary=folder / name, **options)


@pytest.mark.parametrize(
    ("name", "vocabulary"),
    [
        ("v.json", list(WORDS)),
        ("v.json", {word: row for row, word in reversed(list(enumerate(WORDS)))}),
        ("v.txt", "\n".join(WORDS)),
        ("v.txt", "\ufeff" + "\n".join(WORDS)),
        ("v.json", "\ufeff" + json.dumps(WORDS)),
        ("v.txt", "\r\n".join(WORDS) + "\r\n"),
    ],
)
def test_a_vocabulary_is_a_list_a_dict_or_lines(name, vocabulary, tmp_path):
    assert_equal_states(imported(tmp_path, vocabulary, name=name), Network(nn.GRU))


def test_special_tokens_are_known_by_their_common_names(tmp_path):
    tokens = ["[PAD]", "[UNK]", "<s>", "</s>", *WORDS[:6], "", "<unk>"]
    checkpoint = imported(tmp_path, tokens)
    theirs, ours = Network(nn.GRU).embedding.weight.data, checkpoint.tensors["encoder.embedding.weight"]
    assert checkpoint.featurizer.vocabulary == (*SPECIAL, "[UNK]", *WORDS[:6])
    assert torch.equal(ours[[UNKNOWN, BEGIN, END, 5]], theirs[[11, 2, 3, 4]])
    assert not ours[PAD].any()


def test_an_unknown_token_that_the_source_lacks_is_the_mean(tmp_path):
    checkpoint = imported(tmp_path, list(WORDS))
    theirs, ours = Network(nn.GRU).embedding.weight.data, checkpoint.tensors["encoder.embedding.weight"]
    assert torch.equal(ours[[UNKNOWN, BEGIN, END]], theirs.mean(0).expand(3, -1))
    assert any("no unknown token" in note for note in StageRecord.load(tmp_path / "model").notes)


def test_tokens_that_the_tokenizer_never_makes_are_counted(tmp_path):
    imported(tmp_path, ["a b", "W", *WORDS[:10]])
    assert any(
        note == "2 of 12 tokens never come out of the tokenizer (word, lowercase): 'a b', 'W'."
        for note in StageRecord.load(tmp_path / "model").notes
    )


@pytest.mark.parametrize(
    ("name", "vocabulary", "message"),
    [
        ("v.json", list(WORDS[:-1]), "has 11 tokens, the embedding has 12 rows"),
        ("v.txt", "\n".join(WORDS) + "\nmore", "has 13 tokens, the embedding has 12 rows"),
        ("v.json", {"a": 12}, "'a' has the row 12, the embedding has 12"),
        ("v.json", {"a": -1}, "'a' has the row -1"),
        ("v.json", {"a": True}, "'a' has the row True"),
        ("v.json", {"a": "0"}, "'a' has the row 0"),
        ("v.json", {"a": 3, "b": 3}, "one row of the embedding to several tokens"),
        ("v.json", [*WORDS[:11], "w0"], "'w0' stands twice, in the rows 0 and 11"),
        ("v.json", [*WORDS[:11], 7], "'7' is no token"),
        ("v.json", '{"\\ud800": 0}', "is no token"),
        ("v.json", '{"a": 0, "b": 1, "a": 2}', "the token 'a' stands twice"),
        ("v.json", "7", "neither a JSON list"),
        ("v.json", "[", "can't be read"),
        ("v.json", "[" * 100_000, "can't be read"),
        ("v.json", [""] * 12, "no tokens but special ones"),
        ("v.json", {"<pad>": 0, "<unk>": 1}, "no tokens but special ones"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(name, vocabulary, message, tmp_path):
    with pytest.raises(DataError, match=message):
        imported(tmp_path, vocabulary, name=name)
    assert not (tmp_path / "model").exists()


def test_a_vocabulary_that_is_not_there_or_no_text_is_refused(tmp_path):
    path = save(Network(nn.GRU).state_dict(), tmp_path)
    with pytest.raises(DataError, match="can't be read"):
        import_weights(path, ImportOptions(out=tmp_path / "model", vocabulary=tmp_path / "none.json", quiet=True))
    (tmp_path / "v.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match="can't be read"):
        bring_in(path, vocabulary=tmp_path / "v.txt")
