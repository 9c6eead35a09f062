"""The guard against negative transfer: the twin is the scratch run, the verdict is the paired interval's."""

import pytest
import torch
from helpers import toy_rows, write_csv
from test_transfer import options

from headwater import trainer
from headwater.records import StageRecord
from headwater.statistics import paired_bootstrap, verdict
from headwater.trainer import _Run
from headwater.transfer_learning import control
from headwater.transfer_learning.verb import transfer


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a training in the middle."""


def record_of(source, given):
    transfer(source, given)
    return StageRecord.load(given.out)


def verdict_note(record):
    (note,) = (note for note in record.notes if "from scratch" in note)
    return note


@pytest.mark.parametrize("method", ["init", "features"])
def test_the_twin_is_the_scratch_run_and_the_transfer_is_what_it_is_without(method, data, source, tmp_path):
    alone = record_of(source, options(data, tmp_path / "alone", method=method))
    scratch = record_of(source, options(data, tmp_path / "scratch", method="scratch"))
    both = record_of(source, options(data, tmp_path / "both", method=method, control=True))
    assert both.identity == alone.identity
    assert both.metrics == alone.metrics
    assert alone.controls == {}
    assert both.controls == {"scratch": pytest.approx(scratch.metrics["test"])}
    interval = paired_bootstrap([int(hit) for hit in both.correct], [int(hit) for hit in scratch.correct])
    note = verdict_note(both)
    assert f"{interval.mean:+.3f}, 95% interval {interval.low:+.3f} to {interval.high:+.3f}" in note
    assert note.endswith(f"of 90 test rows): {verdict(interval)}.")


def test_both_are_trained_for_each_seed_on_the_same_rows(data, source, tmp_path, monkeypatch):
    seen = []
    plain = control.evaluate
    monkeypatch.setattr(control, "evaluate", lambda job: seen.append((job, plain(job))) or seen[-1][1])
    record = record_of(
        source, options(data, tmp_path / "t", method="init", seed=3, control=True, control_seeds=2, epochs=1)
    )
    assert [(job.options.method, job.options.seed) for job, _ in seen] == [
        ("init", 3),
        ("scratch", 3),
        ("init", 4),
        ("scratch", 4),
    ]
    assert len({tuple(job.splits.train.texts) for job, _ in seen}) == 1
    (first, second) = (figures.figures() for job, figures in seen if job.options.method == "scratch")
    assert record.controls["scratch"]["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2)
    assert first["loss"] != second["loss"]
    assert record.metrics["test"] == seen[0][1].figures()
    assert "over 2 seeds" in verdict_note(record)


@pytest.mark.parametrize(
    ("method", "stop_at"), [("init", 5), ("init", 25), ("lora", 45), ("lora", 70), ("adapters", 50)]
)  # of 4 times 21
def test_an_interrupted_control_ends_with_the_same_bits(method, stop_at, data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"method": method, "control": True, "control_seeds": 2, "epochs": 3, "batch_size": 24, "patience": 0}
    whole = record_of(source, options(data, tmp_path / "whole", **given))
    step, taken = _Run.train_step, []

    def stopping(run):
        taken.append(run.step)
        if len(taken) == stop_at:
            raise Stop
        return step(run)

    monkeypatch.setattr(_Run, "train_step", stopping)
    with pytest.raises(Stop):
        transfer(source, options(data, tmp_path / "killed", **given))
    taken.clear()
    monkeypatch.setattr(_Run, "train_step", lambda run: taken.append(run.step) or step(run))
    torch.manual_seed(99)
    resumed = record_of(source, options(data, tmp_path / "killed", **given, resume=True))
    assert len(taken) <= 84 - stop_at + 4  # what a training had done when it was saved last is not done again
    for name in ("identity", "metrics", "controls", "notes", "curves"):
        assert getattr(resumed, name) == getattr(whole, name), name


def test_without_rows_to_measure_on_there_is_no_control(data, source, tmp_path):
    few = write_csv(tmp_path / "few.csv", toy_rows(40, seed=8))
    record = record_of(source, options(data, tmp_path / "t", data=few, test=None, method="init", control=True))
    assert record.controls == {}
    assert not any("from scratch" in note for note in record.notes)


def test_the_transfer_that_lost_is_said_to_have(data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "evaluate", broken(control.evaluate))
    given = options(data, tmp_path / "t", method="init", control=True, epochs=6)
    assert verdict_note(record_of(source, given)).endswith(": loss.")


def broken(evaluate):
    """Return what measures a model that a method other than scratch has made as if it had forgotten everything."""

    def measured(job):
        if job.options.method != "scratch":
            for parameter in job.model.parameters():
                parameter.data.zero_()
        return evaluate(job)

    return measured
