"""`fine_tune`: one call, and each of its steps as the command that does the same."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import TINY, toy_rows, write_csv

from headwater import fine_tune, trainer
from headwater.checkpoint import Checkpoint
from headwater.cli import main
from headwater.errors import ConfigError, OutputError
from headwater.fitting import read_splits
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord
from headwater.tasks.language_modeling import StreamObjective
from headwater.transfer_learning import verb
from headwater.transfer_learning.fine_tuning import FineTuneOptions, command, plan
from headwater.transfer_learning.language_model import text_splits
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


@pytest.fixture(scope="module")
def language_model(data, tmp_path_factory):
    """The folder of a language model."""
    out = tmp_path_factory.mktemp("lm") / "lm"
    given = TINY | {"data": str(data / "train.csv"), "bidirectional": False, "bptt": 8, "batch_size": 8, "epochs": 1}
    pretrain(PretrainOptions(**given, task="language_modeling", out=out))
    return out


def test_a_language_model_learns_the_rows_text_first(language_model, small, tmp_path, capsys):
    out, before = tmp_path / "made", tmp_path / "made-language-model"
    given = [str(language_model), "--data", small, "--no-control", "--least-text", "100", "--device", "cpu"]
    assert main(["fine-tune", *given, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    reader, made = StageRecord.load(before), StageRecord.load(out)
    assert reader.config["task"] == Checkpoint.load(before).config.task["name"] == "language_modeling"
    assert (reader.config["bptt"], reader.config["unfreeze"], made.config["unfreeze"]) == (8, "at_once", "gradual")
    assert reader.metrics == {}  # too few rows to hold out, and no others
    assert reader.parents[0].identity == Checkpoint.load(language_model).identity
    assert made.parents[0].identity == reader.identity
    assert Checkpoint.load(out).labels == ("bad", "fair", "good")

    assert main(moved(shown(said, "step 1 of 2: "), tmp_path / "first")) == 0
    assert StageRecord.load(tmp_path / "first").identity == reader.identity
    second = shown(said, "step 2 of 2: ")
    assert second[1] == shown(said, "the same model without trials and twins: ")[1] == str(before)
    assert main(moved(second, tmp_path / "second")) == 0
    assert StageRecord.load(tmp_path / "second").identity == made.identity


@pytest.mark.parametrize("killed", ["language_modeling", "classification"])
def test_both_steps_resume_to_the_same_bits(killed, language_model, small, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"data": small, "control": False, "least_text": 100, "quiet": True, "device": "cpu"}
    whole = fine_tune(language_model, out=tmp_path / "whole", **given)
    first = StageRecord.load(tmp_path / "whole-language-model").identity
    step, taken = trainer._Run.train_step, []

    def stopping(run):
        language = isinstance(run.objectives[0], StreamObjective)
        taken.append(language == (killed == "language_modeling") and run.state_file is not None)
        if sum(taken) == 5:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(language_model, out=tmp_path / "t", **given)
    assert (tmp_path / "t-language-model").exists() == (killed == "classification")
    assert fine_tune(language_model, out=tmp_path / "t", **given, resume=True).identity == whole.identity
    assert StageRecord.load(tmp_path / "t-language-model").identity == first


def test_a_language_model_needs_text_enough(data, language_model, small, source, tmp_path):
    made = Checkpoint.load(language_model)

    def steps(checkpoint, **given):
        return [step.task for step in plan(checkpoint, FineTuneOptions(data=small, out=tmp_path / "t", **given))]

    tokens = sum(len(text.split()) for text in toy_rows(45, seed=8, labels=("bad", "fair", "good")).texts)
    assert steps(made, least_text=tokens) == ["language_modeling", "classification"]
    assert steps(made, least_text=tokens + 1) == steps(made) == steps(source, least_text=0) == ["classification"]


def test_windows_are_those_of_the_paper_where_the_source_read_rows_apart(language_model, small, tmp_path):
    made = Checkpoint.load(language_model)
    apart = replace(made, config=made.config.model_copy(update={"task": made.config.task | {"bptt": 0}}))
    assert plan(apart, FineTuneOptions(data=small, out=tmp_path / "t", least_text=0))[0].bptt == 70


def test_rows_that_are_held_out_are_so_in_both_steps(data, language_model, tmp_path):
    given = FineTuneOptions(data=str(data / "three.csv"), valid=0.3, rows=201, seed=2, least_text=0, out=tmp_path / "t")
    first, second = plan(Checkpoint.load(language_model), given)
    reads, labels = text_splits(first), read_splits(second, 2)
    assert (list(reads.train.texts), list(reads.test.texts)) == (list(labels.train.texts), list(labels.test.texts))
    assert len(reads.valid) == 60
    assert (reads.labels, reads.train.labels, reads.test.labels) == ((), [], [])


def test_a_folder_that_is_taken_is_said_before_the_first_step(language_model, small, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "mine").touch()
    with pytest.raises(OutputError, match="holds something else"):
        fine_tune(language_model, data=small, out=tmp_path / "t", least_text=0, quiet=True)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["t"]


def test_the_threshold_of_text_is_no_option_of_other_sources(source_folder, small, tmp_path, capsys):
    given = ["--data", small, "--no-control", "--least-text", "7", "--out", str(tmp_path / "t")]
    assert main(["fine-tune", str(source_folder), *given]) == 0
    assert "--least-text was ignored" in capsys.readouterr().err


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
