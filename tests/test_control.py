"""The guard against negative transfer: the twin is the scratch run, the verdict is the paired interval's."""

from itertools import pairwise

import pytest
import torch
from helpers import toy_rows, write_csv
from test_transfer import options

from headwater import trainer
from headwater.progress import Progress
from headwater.records import StageRecord
from headwater.statistics import paired_bootstrap, verdict
from headwater.trainer import _Run
from headwater.transfer_learning import control
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer


class Stop(Exception):  # noqa: N818 - it stands for the end of the process
    """What ends a training in the middle."""


def record_of(source, given):
    transfer(source, given)
    return StageRecord.load(given.out)


def sentence(record):
    (note,) = (note for note in record.notes if note.startswith("Over training from scratch"))
    return note


def test_every_transfer_has_its_twin_over_three_seeds_unless_told_not_to():
    given = TransferOptions(data="rows.csv", out="model")
    assert (given.control, given.control_seeds) == (True, 3)


@pytest.mark.parametrize("method", ["init", "features"])
def test_the_twin_is_the_scratch_run_and_the_transfer_is_what_it_is_without(method, data, source, tmp_path):
    alone = record_of(source, options(data, tmp_path / "alone", method=method))
    scratch = record_of(source, options(data, tmp_path / "scratch", method="scratch"))
    both = record_of(source, options(data, tmp_path / "both", method=method, control=True, control_seeds=1))
    assert both.identity == alone.identity
    assert both.metrics == alone.metrics
    assert alone.controls == {}
    assert alone.gain is None
    assert both.controls == {"scratch": pytest.approx(scratch.metrics["test"])}
    interval = paired_bootstrap([int(hit) for hit in both.correct], [int(hit) for hit in scratch.correct])
    gain = both.gain
    assert (gain.mean, gain.low, gain.high) == (interval.mean, interval.low, interval.high)
    assert (gain.seeds, gain.verdict) == (1, verdict(interval))
    note, linear = sentence(both), both.baselines["tfidf_logistic_regression"]["accuracy"]
    assert f"95% interval {interval.low:+.3f} to {interval.high:+.3f}, paired bootstrap of 90 test rows)" in note
    over = f"over the linear baseline ({linear:.3f}) {both.metrics['test']['accuracy'] - linear:+.3f}."
    assert note.endswith(f": {verdict(interval)}; {over}")
    assert note == both.notes[-1]


def test_both_are_trained_for_each_seed_on_the_same_rows(data, source, tmp_path, monkeypatch):
    seen, shown = [], []
    plain = control.evaluate
    monkeypatch.setattr(control, "evaluate", lambda job: seen.append((job, plain(job))) or seen[-1][1])
    monkeypatch.setattr(Progress, "note", lambda _, text: shown.append(text))
    record = record_of(
        source, options(data, tmp_path / "t", method="init", seed=3, control=True, control_seeds=2, epochs=1)
    )
    order = [("init", 3), ("scratch", 3), ("init", 4), ("scratch", 4)]
    assert [(job.options.method, job.options.seed) for job, _ in seen] == order
    trainings = [f"training {number} of 4: {method}, seed {seed}" for number, (method, seed) in enumerate(order, 1)]
    assert [text for text in shown if text.startswith("training")] == trainings
    assert len({tuple(job.splits.train.texts) for job, _ in seen}) == 1
    (first, second) = (figures.figures() for job, figures in seen if job.options.method == "scratch")
    assert record.controls["scratch"] == first != second
    assert record.metrics["test"] == seen[0][1].figures()
    hits = {method: [e.probabilities_NK.argmax(1) == e.targets_N for j, e in seen if j.options.method == method]
            for method in ("init", "scratch")}  # fmt: skip
    interval = paired_bootstrap(hits["init"], hits["scratch"])
    assert (record.gain.low, record.gain.high, record.gain.seeds) == (interval.low, interval.high, 2)
    assert "means of 2 seeds" in sentence(record)
    assert "90 test rows and seeds" in sentence(record)


GIVEN = {"control": True, "control_seeds": 2, "epochs": 3, "batch_size": 24, "patience": 0}  # 4 trainings of 21 steps


def killed_at(step_number, source, given, monkeypatch):
    """Kill a transfer at a step, resume it, and return its record and the steps that were taken after that."""
    step, taken = _Run.train_step, []

    def stopping(run):
        taken.append(run.step)
        if len(taken) == step_number:
            raise Stop
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "train_step", stopping)
        with pytest.raises(Stop):
            transfer(source, given)
    taken.clear()
    with monkeypatch.context() as patch:
        patch.setattr(_Run, "train_step", lambda run: taken.append(run.step) or step(run))
        torch.manual_seed(99)
        return record_of(source, given.model_copy(update={"resume": True})), taken


def same_result(one, other):
    for name in ("identity", "metrics", "controls", "gain", "notes", "curves"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize(("method", "stop_at"), [("init", 5), ("init", 25), ("lora", 45), ("lora", 70)])
def test_an_interrupted_control_ends_with_the_same_bits(method, stop_at, data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = GIVEN | {"method": method}
    whole = record_of(source, options(data, tmp_path / "whole", **given))
    resumed, taken = killed_at(stop_at, source, options(data, tmp_path / "killed", **given), monkeypatch)
    assert len(taken) <= 84 - stop_at + 4  # what a training had done when it was saved last is not done again
    same_result(resumed, whole)


def test_a_training_that_was_done_is_not_done_again_however_short_it_was(data, source, tmp_path, monkeypatch):
    whole = record_of(source, options(data, tmp_path / "whole", method="init", **GIVEN))
    given = options(data, tmp_path / "killed", method="init", **GIVEN)
    resumed, taken = killed_at(50, source, given, monkeypatch)  # in the third of four, long before it is time to save
    begun = [(a, b) for a, b in pairwise([None, *taken]) if b == 0]
    assert (len(taken), len(begun)) == (42, 2)
    same_result(resumed, whole)


def test_without_rows_to_measure_on_there_is_no_control_but_a_note(data, source, tmp_path):
    few = write_csv(tmp_path / "few.csv", toy_rows(40, seed=8))
    record = record_of(source, options(data, tmp_path / "t", data=few, test=None, method="init", control=True))
    assert (record.controls, record.gain) == ({}, None)
    assert record.notes[-1].startswith("No twin from scratch was trained: there are no rows to compare on")


def test_training_from_scratch_has_no_twin_but_a_note(data, source, tmp_path):
    record = record_of(source, options(data, tmp_path / "t", method="scratch", control=True, epochs=1))
    assert (record.controls, record.gain) == ({}, None)
    assert record.notes[-1].startswith(
        "A training from scratch is the control itself, so no twin stands beside it; over"
    )


def test_held_out_rows_are_compared_on_where_there_are_no_others(data, source, tmp_path):
    given = options(data, tmp_path / "t", test=None, method="features", control=True, control_seeds=1, epochs=1)
    assert "of 72 held-out rows" in sentence(record_of(source, given))


@pytest.mark.parametrize("head", ["source", "new"])
def test_the_source_as_it_is_stands_in_the_sentence_where_it_has_figures(head, data, source, tmp_path):
    given = {"data": str(data / "train.csv"), "test": str(data / "test.csv"), "control_seeds": 1, "epochs": 1}
    record = record_of(source, options(data, tmp_path / "t", method="init", head=head, control=True, **given))
    assert ("over the source as it is" in sentence(record)) == (head == "source")
    if head == "source":
        gained = record.metrics["test"]["accuracy"] - record.metrics["zero_shot"]["accuracy"]
        assert f"over the source as it is ({record.metrics['zero_shot']['accuracy']:.3f}) {gained:+.3f}" in sentence(
            record
        )


def test_the_transfer_that_lost_is_said_to_have(data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "evaluate", broken(control.evaluate))
    given = options(data, tmp_path / "t", method="init", control=True, control_seeds=1, epochs=6)
    record = record_of(source, given)
    assert record.gain.verdict == "loss"
    assert "): loss; over " in sentence(record)


def broken(evaluate):
    """Return what measures a model that a method other than scratch has made as if it had forgotten everything."""

    def measured(job):
        if job.options.method != "scratch":
            for parameter in job.model.parameters():
                parameter.data.zero_()
        return evaluate(job)

    return measured
