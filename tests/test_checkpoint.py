"""Checkpoints: what is saved is read back, and whatever is damaged, foreign or smuggled in is refused by name."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import same_bits
from small_models import HEAD, personal, small_checkpoint

import headwater
from headwater.checkpoint import Checkpoint
from headwater.compression.int8 import quantize
from headwater.errors import CheckpointError, OutputError
from headwater.features.text import TextFeaturizer, TextOptions
from headwater.folder import SUMS_FILE, seal
from headwater.lineage import LineageEntry
from headwater.records import Privacy


def shared():
    return small_checkpoint(layers=2)


def with_clients():
    checkpoint = small_checkpoint()
    return replace(checkpoint, personal=personal(checkpoint, "ann", "bob's / 张"))


def int8():
    checkpoint = small_checkpoint(cell="gru")
    config = checkpoint.config.model_copy(update={"compression": "int8"})
    return replace(checkpoint, config=config, tensors=quantize(checkpoint.tensors))


def language_model():
    return small_checkpoint(task={"name": "language_modeling"}, bidirectional=False)


def byte_pairs():
    options = TextOptions(tokenizer="bpe", min_count=1)
    featurizer = TextFeaturizer.fit(["good film", "bad film 电影"] * 3, options)
    checkpoint = small_checkpoint(words=featurizer.vocabulary[4:])
    return replace(
        checkpoint, featurizer=featurizer, config=checkpoint.config.model_copy(update={"featurizer": options})
    )


MAKERS = [shared, with_clients, int8, language_model, byte_pairs]


@pytest.fixture
def folder(tmp_path):
    with_clients().save(tmp_path / "c")
    return tmp_path / "c"


def rewrite(path, change):
    """Change a file and seal the folder again, as a forger would."""
    path.write_text(change(path.read_text()))
    seal(path.parent)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_saved_checkpoint_is_read_back(tmp_path, maker):
    checkpoint = maker()
    checkpoint = replace(
        checkpoint,
        lineage=checkpoint.lineage.then(LineageEntry(name="one", verb="pretrain", metrics={"test": {"loss": 0.5}})),
    )
    checkpoint.save(tmp_path / "c")
    loaded = Checkpoint.load(tmp_path / "c")
    assert loaded.identity == checkpoint.identity
    assert loaded.config.model_dump_json() == checkpoint.config.model_dump_json()
    assert loaded.lineage == checkpoint.lineage
    assert loaded.path == tmp_path / "c"
    assert same_bits(loaded.tensors, checkpoint.tensors)
    assert same_bits(loaded.weights(), checkpoint.weights())
    assert loaded.featurizer.vocabulary == checkpoint.featurizer.vocabulary
    assert loaded.featurizer.encode("w1 good 电影 unseen") == checkpoint.featurizer.encode("w1 good 电影 unseen")
    assert loaded.personal.keys() == checkpoint.personal.keys()
    for client, own in checkpoint.personal.items():
        assert same_bits(loaded.personal[client], own)
        assert torch.equal(loaded.weights(client)[HEAD], own[HEAD])
    assert sum(loaded.sizes().values()) > 0
    assert loaded.parameter_count() == sum(value.numel() for value in loaded.weights().values())


@pytest.mark.parametrize("maker", MAKERS)
def test_a_damaged_byte_in_any_file_is_found_and_the_file_named(tmp_path, maker):
    maker().save(tmp_path / "c")
    names = sorted(path.name for path in (tmp_path / "c").iterdir())
    assert {"model.safetensors", "config.json", "vocabulary.json", "lineage.json", "card.md", SUMS_FILE} <= set(names)
    for name in names:
        path = tmp_path / "c" / name
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                Checkpoint.load(tmp_path / "c")
        path.write_bytes(whole[:-1])
        if name != SUMS_FILE:  # there the last byte is but the end of a line
            with pytest.raises(CheckpointError, match=name):
                Checkpoint.load(tmp_path / "c")
        path.write_bytes(whole)
    Checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("maker", MAKERS)
def test_a_missing_file_is_named(tmp_path, maker):
    maker().save(tmp_path / "whole")
    for name in sorted(path.name for path in (tmp_path / "whole").iterdir()):
        shutil.copytree(tmp_path / "whole", tmp_path / "c")
        (tmp_path / "c" / name).unlink()
        with pytest.raises(CheckpointError, match=name):
            Checkpoint.load(tmp_path / "c")
        shutil.rmtree(tmp_path / "c")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocabulary.json", "lineage.json"])
def test_a_file_that_is_needed_must_be_listed(folder, name):
    sums = folder / SUMS_FILE
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if name not in line))
    with pytest.raises(CheckpointError, match=f"lists no {name}|{name} isn't listed"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("name", ["personal.safetensors", "tokenizer.json"])
def test_a_file_that_was_never_listed_is_not_read(tmp_path, name):
    shared().save(tmp_path / "c")
    (tmp_path / "c" / name).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=f"{name} isn't listed"):
        Checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (HEAD, torch.zeros(2, 2), r"has \(2, 2\) for 'head.linear.weight' of client 'ann'"),
        ("head.linear.wait", torch.zeros(1), "'head.linear.wait' of client 'ann' where config.json says none"),
    ],
)
def test_a_clients_own_weights_must_fit_the_model(tmp_path, name, value, said):
    checkpoint = small_checkpoint()
    replace(checkpoint, personal=personal(checkpoint, "bob") | {"ann": {name: value}}).save(tmp_path / "c")
    with pytest.raises(CheckpointError, match=said):
        Checkpoint.load(tmp_path / "c")


def test_a_note_beside_the_files_does_no_harm(folder):
    before = Checkpoint.load(folder).identity
    (folder / "notes.txt").write_text("mine")
    assert Checkpoint.load(folder).identity == before


@pytest.mark.parametrize("name", ["../c2/config.json", "/etc/passwd", "a/b", "..", "a\\b", "a b", ""])
def test_a_listed_name_that_leads_elsewhere_is_refused(folder, name):
    outside = folder.parent / "c2"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    with (folder / SUMS_FILE).open("a") as stream:
        stream.write(f"{'0' * 64}  {name}\n")
    with pytest.raises(CheckpointError, match=r"SHA256SUMS is damaged|\.\. is missing"):
        Checkpoint.load(folder)


def test_something_else_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="isn't a folder"):
        Checkpoint.load(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="isn't a folder"):
        Checkpoint.load(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Checkpoint.load(tmp_path / "empty")
    (tmp_path / "empty" / SUMS_FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match="no readable SHA256SUMS"):
        Checkpoint.load(tmp_path / "empty")


def test_another_version_is_refused_with_both_names(folder):
    rewrite(folder / "config.json", lambda text: text.replace("headwater.checkpoint/1", "headwater.checkpoint/2"))
    with pytest.raises(CheckpointError, match=r"'headwater.checkpoint/2', this version reads 'headwater.checkpoint/1'"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("content", ["[]", "3", "{", '{"format": "headwater.checkpoint/1"}'])
def test_a_config_of_another_make_is_refused(folder, content):
    rewrite(folder / "config.json", lambda _: content)
    with pytest.raises(CheckpointError, match="config.json"):
        Checkpoint.load(folder)


def test_a_vocabulary_of_another_model_is_refused(folder):
    rewrite(folder / "vocabulary.json", lambda text: json.dumps(json.loads(text)[:-1]))
    with pytest.raises(CheckpointError, match="vocabulary size 39 but the model was built for 40"):
        Checkpoint.load(folder)


def test_weights_of_another_model_are_refused(folder):
    rewrite(folder / "config.json", lambda text: text.replace('"hidden_size": 5', '"hidden_size": 7'))
    with pytest.raises(CheckpointError, match="two different checkpoints"):
        Checkpoint.load(folder)
    rewrite(folder / "config.json", lambda text: text.replace('"hidden_size": 7', '"hidden_size": 5'))
    rewrite(folder / "config.json", lambda text: text.replace('"layers": 1', '"layers": 2'))
    with pytest.raises(CheckpointError, match="has no for 'encoder.stack.layers.1"):
        Checkpoint.load(folder)


def test_a_lineage_of_another_make_is_refused(folder):
    rewrite(folder / "lineage.json", lambda _: '{"stages": 3}')
    with pytest.raises(CheckpointError, match="lineage.json"):
        Checkpoint.load(folder)


def test_an_unknown_client_is_refused_with_the_known_ones():
    with pytest.raises(CheckpointError, match="carl"):
        with_clients().weights("carl")


def test_the_identity_changes_with_weights_config_vocabulary_and_clients_only():
    checkpoint = small_checkpoint()
    other = dict(checkpoint.tensors) | {HEAD: checkpoint.tensors[HEAD] + 1}
    config = checkpoint.config.model_copy(update={"compression": "int8"})
    seen = {
        checkpoint.identity,
        replace(checkpoint, tensors=other).identity,
        replace(checkpoint, config=config).identity,
        replace(checkpoint, personal=personal(checkpoint, "ann")).identity,
        small_checkpoint(words=("x", *[f"w{n}" for n in range(35)])).identity,
    }
    assert len(seen) == 5
    named = replace(checkpoint, lineage=checkpoint.lineage.then(LineageEntry(name="a", verb="b")))
    assert named.identity == checkpoint.identity
    assert replace(checkpoint, tensors=dict(reversed(checkpoint.tensors.items()))).identity == checkpoint.identity


def test_loading_draws_nothing_from_the_global_generator(folder):
    checkpoint = Checkpoint.load(folder)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    checkpoint.model("ann")
    assert torch.equal(torch.rand(3), expected)


def test_the_card_tells_the_stages_and_the_privacy_spent():
    privacy = Privacy(
        epsilon=3.2,
        delta=1e-3,
        noise_multiplier=1.0,
        clip=0.5,
        sampling_rate=0.1,
        rounds=9,
        population=90,
        accountant="a",
    )
    checkpoint = small_checkpoint()
    entry = LineageEntry(name="fed|1", verb="federate", method="mean", seed=4, privacy=privacy)
    card = checkpoint.lineage.then(entry).card(checkpoint.config.model_dump(mode="json"), checkpoint.parameter_count())
    assert "(3.2, 1.0e-03)-differentially private for each client in the stage fed|1" in card
    assert "| federate | mean | 4 |" in card
    assert "bad, fair, good" in card


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="file"):
        shared().save(tmp_path / "file" / "c")


SOURCES = sorted(Path(headwater.__file__).parent.rglob("*.py"))
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def unsafe_uses(source):
    """Return what in a module could run code that stands in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("torch.load", "eval", "exec") or (
                called in ("np.load", "numpy.load") and "allow_pickle" in ast.unparse(node)
            ):
                found.append(called)
    return found


def test_no_module_can_run_code_that_stands_in_a_file():
    assert len(SOURCES) > 50
    assert {path.name: uses for path in SOURCES if (uses := unsafe_uses(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize(
    "line", ["import pickle", "from joblib import load", "torch.load(x)", "np.load(x, allow_pickle=True)"]
)
def test_the_search_for_unsafe_calls_finds_them(line):
    assert unsafe_uses(line)


@pytest.mark.parametrize("damage", ["nan", "scale", "stray"])
def test_weights_that_cannot_be_used_are_refused_though_the_checksums_fit(damage, folder):
    tensors = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    name = "head.linear.weight"
    if damage == "nan":
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    elif damage == "scale":
        tensors[name] = torch.ones(tensors[name].shape, dtype=torch.int8)
    else:
        tensors[name + ".scale"] = torch.ones(1)
    (folder / "model.safetensors").write_bytes(safetensors.torch.save(tensors))
    seal(folder)
    with pytest.raises(CheckpointError, match=name):
        Checkpoint.load(folder)
