"""`fine_tune`: one call, and each of its steps as the command that does the same."""

import shlex
from pathlib import Path

import pytest
from helpers import TINY, toy_rows, write_csv

from headwater import fine_tune
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.errors import ConfigError
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord
from headwater.transfer_learning import verb
from headwater.transfer_learning.fine_tuning import FineTuneOptions, command, plan
from headwater.transfer_learning.options import TransferOptions


def shown(text, beginning):
    """Return the words of the command that a line shows."""
    (line,) = (line for line in text.splitlines() if beginning in line)
    words = shlex.split(line.partition(beginning)[2])
    assert words.pop(0) == "headwater"
    return words


def moved(words, out):
    """Return a command that writes elsewhere, and says nothing."""
    at = words.index("--out") + 1
    return [*words[:at], str(out), *words[at + 1 :], "--quiet"]


@pytest.fixture
def small(tmp_path):
    """A few rows of three labels: too few to try methods by, so that a test is quick."""
    return write_csv(tmp_path / "small.csv", toy_rows(45, seed=8, labels=("bad", "fair", "good")))


def test_one_call_is_the_commands_that_it_shows(data, source_folder, small, tmp_path, capsys, monkeypatch):
    test, out = str(data / "three_test.csv"), tmp_path / "made"
    assert main(["fine-tune", str(source_folder), "--data", small, "--test", test, "--out", str(out)]) == 0
    said = capsys.readouterr()
    record = StageRecord.load(out)
    assert (record.verb, record.method, record.gain.seeds) == ("transfer", "finetune", 3)
    last = said.out.splitlines()[-2]
    assert last.startswith("Over training from scratch")
    assert "over the linear baseline" in last
    assert sum(" of 6: " in line for line in said.err.splitlines()) == 6

    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(verb, "transfer", lambda checkpoint, given: asked.append((checkpoint.identity, given)))
        assert main(shown(said.err, "step 1 of 1: ")) == 0
    ((start, given),) = asked
    assert start == record.parents[0].identity
    assert given.model_dump(mode="json", exclude={"resume", "quiet"}) == record.config

    alone = shown(said.err, "the same model without trials and twins: ")
    assert "--no-control" in alone
    assert "auto" not in alone[alone.index("--data") : alone.index("--lr")]
    assert main(moved(alone, tmp_path / "alone")) == 0
    assert StageRecord.load(tmp_path / "alone").identity == record.identity
    assert StageRecord.load(tmp_path / "alone").gain is None


@pytest.mark.parametrize("kind", [Checkpoint.load, str, Path])
def test_python_takes_a_checkpoint_or_where_it_lies(kind, source_folder, small, tmp_path):
    made = fine_tune(kind(source_folder), data=Path(small), out=tmp_path / "t", control=False, quiet=True, device="cpu")
    record = StageRecord.load(tmp_path / "t")
    assert made.identity == record.identity
    assert record.parents[0].identity == Checkpoint.load(source_folder).identity
    assert any(curve.chosen for curve in record.curves)


def test_what_is_chosen_follows_from_the_source_and_the_rows(data, source, small, tmp_path):
    few = plan(source, FineTuneOptions(data=small, out=tmp_path / "a"))[0]
    assert (few.method, few.lr, few.epochs, few.unfreeze) == ("auto", "auto", 30, "gradual")
    same = plan(source, FineTuneOptions(data=str(data / "train.csv"), out=tmp_path / "b", rows=100, seed=4))[0]
    assert (same.unfreeze, same.rows, same.seed) == ("at_once", 100, 4)  # the labels of the source
    many = write_csv(tmp_path / "many.csv", toy_rows(3000, seed=8, labels=("bad", "fair", "good")))
    assert plan(source, FineTuneOptions(data=many, out=tmp_path / "c"))[0].epochs == 6


def test_all_layers_of_a_deep_source_thaw(data, tmp_path):
    deep = pretrain(
        PretrainOptions(**TINY | {"data": str(data / "train.csv"), "out": tmp_path / "deep", "epochs": 1}, layers=4)
    )
    many = write_csv(tmp_path / "many.csv", toy_rows(3000, seed=8, labels=("bad", "fair", "good")))
    assert plan(deep, FineTuneOptions(data=many, out=tmp_path / "c"))[0].epochs == 9


def test_a_command_has_what_differs_from_the_defaults_and_is_quoted():
    given = TransferOptions(data="my rows.csv", out="t", control=False, lr=0.1, seed=3, quiet=True, resume=True)
    assert command("a b", given) == (
        "headwater transfer 'a b' --out t --seed 3 --data 'my rows.csv' --lr 0.1 --no-control"
    )


def test_an_option_that_is_not_chosen_here_is_refused(source_folder, small, tmp_path):
    with pytest.raises(ConfigError, match="unknown option 'epochs'"):
        fine_tune(source_folder, data=small, out=tmp_path / "t", epochs=3)
    assert not (tmp_path / "t").exists()
