"""`--method auto`: the best of short runs on held-out rows, and why."""

import re

import pytest
from helpers import toy_rows, write_csv
from test_transfer import options

from headwater.records import StageRecord
from headwater.transfer_learning import choice
from headwater.transfer_learning.verb import transfer


def auto(source, data, out, /, **given):
    made = transfer(source, options(data, out, method="auto", **given))
    record = StageRecord.load(out)
    (why,) = (note for note in record.notes if "--method auto took" in note)
    return made, record, why


def test_the_best_of_short_runs_is_trained_in_full_as_if_it_had_been_asked_for(data, source, tmp_path):
    made, record, why = auto(source, data, tmp_path / "auto", epochs=8)
    found = re.findall(r"(\w+) (\d\.\d{3})", why)
    assert sorted(method for method, _ in found) == ["features", "finetune", "init", "multitask", "scratch"]
    assert [float(value) for _, value in found] == sorted((float(value) for _, value in found), reverse=True)
    assert f"took {record.method}" in why
    assert record.method == found[0][0]
    assert "on 72 held-out rows after 4 of 8 epochs on 168 rows" in why
    alone = transfer(source, options(data, tmp_path / "alone", method=record.method, epochs=8))
    assert made.identity == alone.identity


@pytest.mark.parametrize("best", ["scratch", "features", "init"])
def test_accuracy_decides_and_loss_between_equals(best, data, source, tmp_path, monkeypatch):
    def figures(source, splits, options, workspace):
        return {"accuracy": 0.9 if options.method in (best, "finetune") else 0.8, "loss": float(options.method != best)}

    monkeypatch.setattr(choice, "_figures", figures)
    _, record, why = auto(source, data, tmp_path / "t", source_data=(), epochs=1)
    assert record.method == best
    assert "multitask" not in why
    assert (record.coverage is None) == (best == "scratch")


def test_few_rows_are_not_compared_by(data, source, tmp_path):
    few = write_csv(tmp_path / "few.csv", toy_rows(100, seed=8))
    _, record, why = auto(source, data, tmp_path / "t", data=few, test=str(data / "test.csv"), epochs=1)
    assert record.method == "finetune"
    assert why.startswith("Too few rows to hold 50 of them out, of 100")


def test_what_auto_does_not_read_is_said_and_rows_that_chose_flatter(data, source, tmp_path):
    _, record, _ = auto(source, data, tmp_path / "t", epochs=1, rank=3, source_data=(), source_text="x", test=None)
    assert {note.split()[0] for note in record.notes if "was ignored" in note} == {"--rank", "--source-text"}
    assert any("The held-out rows have chosen the method too" in note for note in record.notes)
