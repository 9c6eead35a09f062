"""Stages: whole or not at all, wherever they are stopped, and resumed only as they were begun."""

import errno
import fcntl
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import TINY, toy_rows, write_csv

from headwater import files, stage
from headwater.checkpoint import Checkpoint
from headwater.compression.verb import CompressOptions, compress
from headwater.config import RunOptions
from headwater.errors import CheckpointError, ConfigError, DataError, OutputError
from headwater.files import write_atomic
from headwater.pretraining import PretrainOptions, pretrain
from headwater.records import StageRecord
from headwater.stage import run_stage
from headwater.trainer import _Run
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer


class Killed(BaseException):
    """What stands for SIGKILL: nothing in the program may catch it."""


def options(folder, out, /, **changes):
    return PretrainOptions(**TINY | {"data": str(folder / "train.csv"), "out": out} | changes)


@pytest.fixture(scope="module")
def expected(data, tmp_path_factory):
    return pretrain(options(data, tmp_path_factory.mktemp("whole") / "m"))


def killed_at(monkeypatch, place, moment):
    """Let the process die at the n-th write to the disk or the n-th file that takes its place; leave all as it is."""
    count = 0

    def die(*given):
        nonlocal count
        count += 1
        if count == place:
            monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a dead process tidies nothing up
            raise Killed
        return whole(*given)

    if moment == "write":
        whole = os.fsync
        monkeypatch.setattr(files.os, "fsync", die)
    else:
        whole = Path.replace
        monkeypatch.setattr(Path, "replace", die)


WRITES = 8
"""Files of a run that saves no state: what was asked, and the seven of the result."""
PLACES = [
    *[("write", place, 10.0) for place in range(1, WRITES + 1)],
    *[("rename", place, 10.0) for place in range(1, WRITES + 2)],  # the last one makes the folder the output
    *[(moment, place, -1.0) for moment in ("write", "rename") for place in (2, 3, 9, 12)],  # amid the training
]


@pytest.mark.parametrize(("moment", "place", "seconds"), PLACES)
def test_a_run_that_is_killed_at_any_write_can_be_resumed(
    moment, place, seconds, data, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr("headwater.trainer.AUTOSAVE_SECONDS", seconds)
    out = tmp_path / "m"
    with monkeypatch.context() as patch:
        killed_at(patch, place, moment)
        with pytest.raises(Killed):
            pretrain(options(data, out))
    assert not out.exists()
    assert pretrain(options(data, out, resume=True)).identity == expected.identity
    assert Checkpoint.load(out).identity == expected.identity
    assert not (tmp_path / "m.partial").exists()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("step", [1, 20])  # eight steps an epoch: also in the last one
def test_a_run_without_held_out_rows_can_be_resumed(step, tmp_path, monkeypatch):
    monkeypatch.setattr("headwater.trainer.AUTOSAVE_SECONDS", -1.0)
    write_csv(tmp_path / "train.csv", toy_rows(60))
    given = {"epochs": 3, "valid": 0.1, "batch_size": 8}
    whole = pretrain(options(tmp_path, tmp_path / "whole", **given))
    train_step = _Run.train_step

    def die(run):
        if run.step == step:
            raise Killed
        return train_step(run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "train_step", die)
        with pytest.raises(Killed):
            pretrain(options(tmp_path, tmp_path / "m", **given))
    assert pretrain(options(tmp_path, tmp_path / "m", resume=True, **given)).identity == whole.identity
    assert StageRecord.load(tmp_path / "m").curves == StageRecord.load(tmp_path / "whole").curves


def fill_disk(monkeypatch, after, code=errno.ENOSPC):
    """Let the disk be full after so many writes."""
    count, whole = 0, os.fsync

    def sync(number):
        nonlocal count
        count += 1
        if count > after:
            raise OSError(code, os.strerror(code))
        whole(number)

    monkeypatch.setattr(files.os, "fsync", sync)


@pytest.mark.parametrize("after", [0, 1, 2, 5])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_costs_no_finished_work(after, code, data, expected, tmp_path, monkeypatch):
    out = tmp_path / "m"
    with monkeypatch.context() as patch:
        fill_disk(patch, after, code)
        with pytest.raises(OutputError, match=r"disk is full while writing .*m\.partial.*--resume"):
            pretrain(options(data, out))
    assert not out.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    assert pretrain(options(data, out, resume=True)).identity == expected.identity


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_place_that_cannot_be_written_is_said(code, data, tmp_path, monkeypatch):
    fill_disk(monkeypatch, 0, code)
    with pytest.raises(OutputError, match="can't write .*choose another --out"):
        pretrain(options(data, tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_an_old_file_stays_whole_when_a_new_one_cannot_be_written(tmp_path, monkeypatch):
    write_atomic(tmp_path / "f", "old")
    fill_disk(monkeypatch, 0)
    with pytest.raises(OutputError, match="disk is full"):
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_a_finished_stage_is_not_done_again(data, tmp_path, monkeypatch):
    first = pretrain(options(data, tmp_path / "m"))
    with pytest.raises(OutputError, match="already holds the result of a 'pretrain'"):
        pretrain(options(data, tmp_path / "m"))
    monkeypatch.setattr("headwater.pretraining._work", lambda *_: pytest.fail("it works again"))
    assert pretrain(options(data, tmp_path / "m", resume=True, threads=1, quiet=False)).identity == first.identity
    with pytest.raises(ConfigError, match="begun with epochs = 2, now it is 3"):
        pretrain(options(data, tmp_path / "m", resume=True, epochs=3))


def interrupted(folder, out, monkeypatch, **changes):
    """Leave an interrupted run with a saved state."""
    monkeypatch.setattr("headwater.trainer.AUTOSAVE_SECONDS", -1.0)
    train_step = _Run.train_step

    def stop(run):
        if run.step == 3:
            raise KeyboardInterrupt
        return train_step(run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "train_step", stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(options(folder, out, **changes))
    assert (out.with_name(out.name + ".partial") / ".state.safetensors").exists()


def test_what_a_finished_run_left_is_removed_and_a_users_hidden_files_are_not(data, tmp_path):
    made = pretrain(options(data, tmp_path / "m"))
    (tmp_path / "m/.gitattributes").write_text("mine")
    assert pretrain(options(data, tmp_path / "m", resume=True)).identity == made.identity
    with pytest.raises(OutputError, match="already holds"):
        pretrain(options(data, tmp_path / "m"))
    assert (tmp_path / "m/.gitattributes").read_text() == "mine"
    (tmp_path / "m/.gitattributes").unlink()
    (tmp_path / "m/.clients").mkdir()  # as a kill in the middle of tidying up leaves it
    (tmp_path / "m/.run.json").write_text("{}")
    assert pretrain(options(data, tmp_path / "m", resume=True)).identity == made.identity
    assert not list((tmp_path / "m").glob(".*"))


def test_an_interrupted_run_is_neither_overwritten_nor_continued_otherwise(data, tmp_path, monkeypatch):
    interrupted(data, tmp_path / "m", monkeypatch)
    with pytest.raises(OutputError, match="add --resume to continue it"):
        pretrain(options(data, tmp_path / "m"))
    with pytest.raises(ConfigError, match="begun with seed = 0, now it is 1"):
        pretrain(options(data, tmp_path / "m", resume=True, seed=1))
    with pytest.raises(ConfigError, match="begun with verb = 'pretrain'"):
        compress(pretrain(options(data, tmp_path / "o")), CompressOptions(out=tmp_path / "m", resume=True))
    assert (tmp_path / "m.partial" / ".state.safetensors").exists()


def test_a_refused_input_does_not_cost_an_interrupted_run(data, tmp_path, monkeypatch):
    write_csv(tmp_path / "train.csv", toy_rows(240, seed=1))
    interrupted(tmp_path, tmp_path / "m", monkeypatch)
    (tmp_path / "train.csv").rename(tmp_path / "elsewhere.csv")
    with pytest.raises(DataError, match="no file"):
        pretrain(options(tmp_path, tmp_path / "m", resume=True))
    (tmp_path / "elsewhere.csv").rename(tmp_path / "train.csv")
    assert (tmp_path / "m.partial" / ".state.safetensors").exists()
    pretrain(options(tmp_path, tmp_path / "m", resume=True))


def test_the_time_of_a_resumed_run_is_that_of_all_attempts(data, tmp_path, monkeypatch):
    interrupted(data, tmp_path / "m", monkeypatch)
    for attempt in (1, 2):  # as if each had worked for an hour until it saved its last state
        began = tmp_path / "m.partial" / ".run.json"
        os.utime(began, (0, began.stat().st_mtime - 3600))
        if attempt == 1:
            with monkeypatch.context() as patch:
                patch.setattr(_Run, "restore", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
                with pytest.raises(KeyboardInterrupt):
                    pretrain(options(data, tmp_path / "m", resume=True))
            state = tmp_path / "m.partial" / ".state.safetensors"
            os.utime(state)
    pretrain(options(data, tmp_path / "m", resume=True))
    assert 7200 < StageRecord.load(tmp_path / "m").wall_seconds < 7300


def test_a_run_is_resumed_only_from_the_same_checkpoint(data, source, tmp_path, monkeypatch):
    given = {"data": str(data / "three.csv"), "out": tmp_path / "t", "epochs": 2, "valid": 0.3, "quiet": True}
    given["control"] = False
    other = replace(source, tensors={name: value * 2 for name, value in source.tensors.items()})
    monkeypatch.setattr("headwater.trainer.AUTOSAVE_SECONDS", -1.0)
    train_step = _Run.train_step
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "train_step", lambda run: (_ for _ in ()).throw(Killed) if run.step else train_step(run))
        with pytest.raises(Killed):
            transfer(source, TransferOptions(**given))
    with pytest.raises(ConfigError, match="begun with checkpoint = "):
        transfer(other, TransferOptions(**given, resume=True))
    done = transfer(source, TransferOptions(**given, resume=True))
    with pytest.raises(ConfigError, match="begun with checkpoint = "):
        transfer(other, TransferOptions(**given, resume=True))
    assert transfer(source, TransferOptions(**given, resume=True)).identity == done.identity


def test_resuming_what_was_never_begun_begins_it(data, expected, tmp_path):
    assert pretrain(options(data, tmp_path / "m", resume=True)).identity == expected.identity


def test_an_empty_folder_may_become_the_output(data, expected, tmp_path):
    (tmp_path / "m").mkdir()
    assert pretrain(options(data, tmp_path / "m")).identity == expected.identity


def test_what_is_not_ours_is_never_touched(data, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("x")
    (tmp_path / "b").write_text("x")
    (tmp_path / "c.partial").mkdir()
    (tmp_path / "c.partial" / "thesis.txt").write_text("x")
    (tmp_path / "d.partial").write_text("x")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for name, message in (
        ("a", "something else"),
        ("b", "is a file"),
        ("c", "something else"),
        ("d", "something else"),
    ):
        for resume in (False, True):
            with pytest.raises(OutputError, match=message):
                pretrain(options(data, tmp_path / name, resume=resume))
    with pytest.raises(OutputError, match="can't write"):
        pretrain(options(data, tmp_path / "b" / "below"))
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("out", [".", "", "/"])
def test_the_output_needs_a_name(out, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="give it a name"):
        pretrain(options(data, Path(out)))


def test_a_record_holds_what_happened(data, expected):
    record = StageRecord.load(expected.path)
    assert (record.name, record.verb, record.method, record.seed) == ("m", "pretrain", "classification", 0)
    assert record.identity == expected.identity
    assert record.config["epochs"] == 2
    assert record.config["min_count"] == 2  # a default
    assert "resume" not in record.config
    assert [(use.role, use.rows) for use in record.data] == [("train", 168), ("valid", 72)]
    assert record.data[0].sha256 == files.sha256_file(data / "train.csv")
    assert record.metrics["valid"]["n"] == 72
    assert record.baselines.keys() == {"majority", "tfidf_logistic_regression"}
    assert len(record.correct) == 72
    assert record.correct.count("1") == round(72 * record.metrics["valid"]["accuracy"])
    assert record.sizes["model.safetensors"] == (expected.path / "model.safetensors").stat().st_size
    assert record.wall_seconds > 0
    assert record.versions.keys() >= {"headwater", "torch", "numpy", "python"}
    assert expected.lineage.stages[0].metrics == record.metrics


def test_a_record_with_a_figure_that_json_cannot_say_is_not_written(expected, tmp_path):
    record = StageRecord.load(expected.path)
    broken = record.model_copy(update={"metrics": {"test": {"loss": math.inf}}})
    with pytest.raises(DataError, match=r"metrics\.test\.loss isn't a finite number: .* lower its learning rate"):
        broken.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_gpu_that_is_not_there_is_refused_and_nothing_left(data, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cpu"):
        pretrain(options(data, tmp_path / "m", device="cuda"))
    assert not any(tmp_path.iterdir())


def test_word_vectors_start_the_embedding_and_must_fit(data, tmp_path):
    (tmp_path / "v.txt").write_text("awful " + " ".join(["0.5"] * 8) + "\nunheard " + " ".join(["1"] * 8) + "\n")
    made = pretrain(options(data, tmp_path / "m", vectors=str(tmp_path / "v.txt"), lr=1e-9, epochs=1, weight_decay=0.0))
    row = made.tensors["encoder.embedding.weight"][made.featurizer.numbers["awful"]]
    assert row.tolist() == pytest.approx([0.5] * 8, abs=1e-5)
    assert StageRecord.load(tmp_path / "m").notes[0].startswith("1 of ")
    with pytest.raises(ConfigError, match="--embedding-size 8"):
        pretrain(options(data, tmp_path / "n", vectors=str(tmp_path / "v.txt"), embedding_size=9))


def test_an_interrupted_run_does_not_go_on_with_other_rows(data, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_bytes((data / "train.csv").read_bytes())
    asked = PretrainOptions(**TINY | {"data": str(rows), "out": tmp_path / "m"})
    again = asked.model_copy(update={"resume": True})
    partial = tmp_path / "m.partial"
    partial.mkdir()
    stage._open_partial(partial, asked, {}, stage._contents(asked))
    stage._open_partial(partial, again, {}, {})  # an attempt while the rows were away
    rows.write_bytes(rows.read_bytes() + b"superb,good,c1\n")
    with pytest.raises(ConfigError, match="the content of data"):
        stage._open_partial(partial, again, {}, stage._contents(asked))
    assert partial.is_dir()


def test_two_processes_dont_work_in_one_folder(tmp_path):
    (tmp_path / "m.partial").mkdir()
    with (tmp_path / "m.partial" / ".lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another process is working in"):
            run_stage("pretrain", RunOptions(out=tmp_path / "m", quiet=True), lambda _: pytest.fail("it began"))


def test_a_damaged_run_file_is_named(tmp_path):
    (tmp_path / "m.partial").mkdir()
    (tmp_path / "m.partial" / ".run.json").write_bytes(b"{\xff")
    options = RunOptions(out=tmp_path / "m", quiet=True, resume=True)
    with pytest.raises(CheckpointError, match=r"\.run\.json is damaged"):
        run_stage("pretrain", options, lambda _: pytest.fail("it began"))


@pytest.mark.parametrize("out", ["x" * 300, "/proc/x"])
def test_a_place_that_cannot_be_written_is_refused(tmp_path, out):
    with pytest.raises(OutputError, match="can't write"):
        run_stage("pretrain", RunOptions(out=tmp_path / out, quiet=True), lambda _: pytest.fail("it began"))
