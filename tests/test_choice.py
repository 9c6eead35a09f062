"""`--method auto`: the safest of the methods that short runs on unseen rows can't tell from the best, and why."""

import re

import numpy as np
import pytest
from helpers import toy_rows, write_csv
from test_transfer import options

from headwater import trainer
from headwater.records import StageRecord
from headwater.transfer_learning import choice
from headwater.transfer_learning.verb import transfer


def auto(source, data, out, /, **given):
    made = transfer(source, options(data, out, method="auto", **given))
    record = StageRecord.load(out)
    (why,) = (note for note in record.notes if "--method auto took" in note)
    return made, record, why


def figures_in(why):
    return {method: float(value) for method, value in re.findall(r"(\w+) (\d\.\d{3})", why.rpartition(" rows: ")[2])}


def test_the_method_that_was_chosen_is_trained_in_full_as_if_it_had_been_asked_for(data, source, tmp_path):
    made, record, why = auto(source, data, tmp_path / "auto", epochs=8)
    found = figures_in(why)
    assert sorted(found) == ["features", "finetune", "init", "multitask", "scratch"]  # no room for adapters of rank 8
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert why.startswith(
        f"--method auto took {record.method}: accuracy on 168 held-out rows, 3 runs each, after 4 of 8"
    )
    assert "epochs on 112 rows" in why
    alone = transfer(source, options(data, tmp_path / "alone", method=record.method, epochs=8))
    assert made.identity == alone.identity


def test_each_row_is_held_out_once_and_never_learned_from_then(data, source, tmp_path, monkeypatch):
    seen = []

    def hits(source, fold, options, workspace, number):
        seen.append((options.method, number, fold))
        return np.ones(len(fold.test), dtype=bool)

    monkeypatch.setattr(choice, "_hits", hits)
    _, record, _ = auto(source, data, tmp_path / "t", source_data=(), epochs=1, rank=2)
    assert record.method == "finetune"
    folds = [fold for method, _, fold in seen if method == "lora"]
    assert len(folds) == 3
    held = [text for fold in folds for text in fold.test.texts]
    learned = {tuple(sorted([*fold.train.texts, *fold.test.texts])) for fold in folds}
    assert learned == {tuple(sorted(held))}
    for fold in folds:
        assert {fold.test.labels.count(label) for label in fold.labels} <= {18, 19}  # of 56
        assert len(fold.valid) == 0


def test_many_held_out_rows_are_the_ones_to_choose_by_and_flatter(data, source, tmp_path):
    many = write_csv(tmp_path / "many.csv", toy_rows(700, seed=8, labels=("bad", "fair", "good")))
    _, record, why = auto(source, data, tmp_path / "t", data=many, test=None, epochs=1, source_data=())
    assert "on 210 held-out rows, after 1 of 1 epochs on 490 rows" in why
    assert any("The held-out rows have chosen the method too" in note for note in record.notes)


def hits_of(**right):
    """Return for each method which of 100 rows it gets right: so many from the front."""
    return {method: np.arange(100) < count for method, count in right.items()}


@pytest.mark.parametrize(
    ("hits", "taken"),
    [
        (hits_of(finetune=80, init=80, scratch=80), "finetune"),
        (hits_of(finetune=80, init=81, scratch=81), "finetune"),  # one row more: as much as its standard error
        (hits_of(finetune=80, init=84, scratch=84), "init"),  # four more, error 0.0197
        (hits_of(finetune=60, init=70, features=90, scratch=90), "features"),
        (hits_of(finetune=60, init=60, features=60, scratch=90), "scratch"),
    ],
)
def test_the_safest_of_those_within_one_standard_error_of_the_best_is_taken(hits, taken):
    assert choice._within_one_error(hits)[0] == taken


def test_the_reason_names_the_best_and_how_little_it_leads_by():
    (taken, why) = choice._within_one_error(hits_of(finetune=80, init=81))
    assert (taken, why) == (
        "finetune",
        "init 0.810, finetune 0.800; finetune is safer than init and within one standard error (0.010) of it",
    )


@pytest.mark.parametrize("rank", [3, 8])
def test_adapters_are_tried_where_they_are_thinner_than_the_matrices(rank, data, source, tmp_path):
    _, _, why = auto(source, data, tmp_path / "t", epochs=1, rank=rank, source_data=())
    assert ("lora" in figures_in(why)) == (rank == 3)


@pytest.mark.parametrize("rows", [toy_rows(40, seed=8), toy_rows(62, seed=8)])
def test_few_rows_are_not_compared_by(rows, data, source, tmp_path):
    labels = list(rows.labels)
    if len(rows) > 50:  # enough, but hardly any of one label
        labels = ["good" if label == "bad" and number > 3 else label for number, label in enumerate(labels)]
    object.__setattr__(rows, "labels", labels)
    few = write_csv(tmp_path / "few.csv", rows)
    _, record, why = auto(source, data, tmp_path / "t", data=few, test=str(data / "test.csv"), epochs=1)
    assert record.method == "finetune"
    assert why.startswith(
        f"--method auto took finetune untried: {len(rows)} rows, or fewer than 3 of a label, are too few"
    )


def test_what_auto_does_not_read_is_said(data, source, tmp_path):
    _, record, _ = auto(source, data, tmp_path / "t", epochs=1, source_data=(), source_text="x", test=None)
    assert {note.split()[0] for note in record.notes if "was ignored" in note} == {"--source-text"}
    assert not any("have chosen the method too" in note for note in record.notes)  # rows to learn from have


def test_an_interrupted_choice_ends_with_the_same_bits(data, source, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "AUTOSAVE_SECONDS", -1.0)
    given = {"epochs": 2, "source_data": (), "batch_size": 32}
    whole, _, expected = auto(source, data, tmp_path / "whole", **given)
    step, taken = trainer._Run.train_step, []

    def stopping(run):
        taken.append(run.step)
        if len(taken) == 40:
            raise KeyboardInterrupt
        return step(run)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Run, "train_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            auto(source, data, tmp_path / "killed", **given)
    taken.clear()
    monkeypatch.setattr(trainer._Run, "train_step", lambda run: taken.append(run.step) or step(run))
    resumed, _, why = auto(source, data, tmp_path / "killed", **given, resume=True)
    assert (resumed.identity, why) == (whole.identity, expected)
    assert len(taken) < 50  # 3 methods x 3 runs x 8 steps, then 12, are 84
