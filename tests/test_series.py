"""Numeric rows come out of every kind of file as they were written, or an error says what is wrong with them."""

import csv
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.config import ValueColumns
from headwater.data.rows import read_rows
from headwater.data.series import parse_steps, read_series
from headwater.data.table import write_table
from headwater.errors import DataError, HeadwaterError

ROWS = [np.array([[1.0, 2.5], [3.0, -4.0], [5.0, 6.0]]), np.array([[7.0, 8.0]])]
NUMBERS = st.one_of(st.integers(-(2**60), 2**60), st.floats(-1e30, 1e30))


def columns(values, **more):
    return ValueColumns(values=values, **more)


def read(path, values, **more):
    return read_series(path, columns(values, **more), label="label")


def check(series, names=("1", "2")):
    assert [values.tolist() for values in series.values] == [values.tolist() for values in ROWS]
    assert (list(series.labels), list(series.names)) == (["a", "b"], list(names))


def long_table():
    lines = [("p", 0, 1.0, 2.5, "a"), ("p", 1, 3.0, -4.0, "a"), ("q", 0, 7.0, 8.0, "b"), ("p", 2, 5.0, 6.0, "a")]
    columns_of = zip(*lines, strict=True)
    return {name: list(each) for name, each in zip(("row", "t", "x", "y", "label"), columns_of, strict=True)}


def write_long(path, change=lambda table: None):
    table = long_table()
    change(table)
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([table.keys(), *zip(*table.values(), strict=True)])
    return path


def write_jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.parquet"])
def test_a_step_a_line(tmp_path, name):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    write_table(tmp_path / name, long_table())
    check(read(tmp_path / name, "x, y", id="row", time="t"), ("p", "q"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_columns_of_lists(tmp_path, name):
    if name == "a.parquet":
        pytest.importorskip("pyarrow")
    table = {
        "steps": [values.tolist() for values in ROWS],
        "channels": [values.T.tolist() for values in ROWS],
        "x": [values[:, 0].tolist() for values in ROWS],
        "y": [values[:, 1].tolist() for values in ROWS],
        "label": ["a", "b"],
    }
    write_table(tmp_path / name, table)
    check(read(tmp_path / name, "steps"))
    check(read(tmp_path / name, "channels", channels_first=True))
    check(read(tmp_path / name, "x,y"))
    assert [values.shape for values in read(tmp_path / name, "x").values] == [(3, 1), (1, 1)]


def test_archives(tmp_path):
    rows = np.stack([ROWS[0], ROWS[0] + 1])
    steps = np.concatenate(ROWS)
    arrays = {"rows": rows, "turned": rows.transpose(0, 2, 1), "x": rows[..., 0].astype(np.float32), "y": rows[..., 1]}
    np.savez(tmp_path / "a.npz", label=np.array(["a", "b"]), **arrays)
    for given_columns in (columns("rows"), columns("turned", channels_first=True), columns("x,y")):
        series = read_series(tmp_path / "a.npz", given_columns, label="label")
        assert (np.stack(series.values) == rows).all()
        assert list(series.labels) == ["a", "b"]
    long = {"id": np.array(["p"] * 3 + ["q"]), "label": np.array(["a"] * 3 + ["b"]), "t": np.arange(4)}
    np.savez(tmp_path / "b.npz", both=steps, x=steps[:, 0], y=steps[:, 1], **long)
    check(read(tmp_path / "b.npz", "both", id="id", time="t"), ("p", "q"))
    check(read(tmp_path / "b.npz", "x,y", id="id"), ("p", "q"))


def test_an_array_a_recording(tmp_path):
    whole = {"a/1": np.array([2, 4, 6], dtype=np.int16), "a/1__scale": np.float32(0.5), "b": np.arange(5.0)}
    np.savez(tmp_path / "a.npz", **whole)
    series = read(tmp_path / "a.npz", "*")
    assert [values.tolist() for values in series.values] == [[[1], [2], [3]], [[0], [1], [2], [3], [4]]]
    assert (series.names, series.labels) == (["a/1", "b"], ["a", "b"])
    assert read_series(tmp_path / "a.npz", columns("*")).labels == []
    with pytest.raises(DataError, match="which has no other columns"):
        read_series(tmp_path / "a.npz", columns("*"), label="label", client="client")


@pytest.mark.parametrize(
    ("column", "line", "value", "said"),
    [
        ("x", 1, "", "line of data 2: the column 'x' is blank where a number was expected"),
        ("x", 1, "1,5", "holds '1,5' where a number"),
        ("y", 3, "nan", "line of data 4: the column 'y' holds 'nan'"),
        ("y", 0, "-inf", "holds '-inf'"),
        ("y", 0, "1e999", "holds '1e999'"),
        ("row", 2, " ", "line of data 3: the column 'row' is blank"),
        ("t", 1, 0, "line of data 2: the time '0' of row 'p' is there twice"),
        ("t", 3, 0.5, "line of data 4: the time '0.5' of row 'p' comes after '1'"),
        ("t", 3, "noon", "holds 'noon' where a number was expected"),
        ("label", 3, "b", "line of data 4: the column 'label' says 'b' of row 'p', and 'a' in line 1"),
    ],
)
def test_what_is_wrong_with_a_table_of_steps_is_said(tmp_path, column, line, value, said):
    path = write_long(tmp_path / "a.csv", lambda table: table[column].__setitem__(line, value))
    with pytest.raises(DataError, match=said):
        read(path, "x,y", id="row", time="t")


def test_times_may_be_dates_of_one_kind(tmp_path):
    def dates(*moments):
        path = write_long(tmp_path / "a.csv", lambda table: table.update(t=list(moments)))
        return read(path, "x,y", id="row", time="t")

    check(dates("2024-01-31", "2024-02-01T00:00:01", "2024-01-01", "2024-02-02"), ("p", "q"))
    with pytest.raises(DataError, match="comes after '2024-02-01'"):
        dates("2024-01-31", "2024-02-01", "2024-01-01", "2024-01-30")
    with pytest.raises(DataError, match="give all times with their zone, or none"):
        dates("2024-01-31", "2024-02-01T00:00:00+01:00", "2024-01-01", "2024-01-30")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "no value where a list"),
        ([], "an empty list where a list"),
        (3, "an int|a int where a list"),
        ([1, None], "step 2: no value where a number"),
        ([1, "2"], "step 2: a str where a number"),
        ([True], "step 1: a bool where a number"),
        ([[1, 2], [3]], "step 2: a list of 1 where 2 numbers"),
        ([[1, 2], 3], "step 2: a int where 2 numbers"),
        ([[]], "step 1: a list of 0 where 1 number"),
        ([1, [2]], "step 2: a list where a number"),
        ([[1, [2]]], "step 1: a list where a number"),
        ([10**400], "too large"),
        ([1, float("nan")], "row 1, step 2, channel 1: nan isn't a finite number up to 1e\\+30"),
        ([[1, float("inf")]], "step 1, channel 2: inf isn't a finite number"),
        ([[1, 1e300]], "step 1, channel 2: 1e\\+300 isn't a finite number"),
    ],
)
def test_what_is_wrong_with_a_list_is_said(tmp_path, value, said):
    path = write_jsonl(tmp_path / "a.jsonl", {"v": value, "label": "a"})
    with pytest.raises(DataError, match=said):
        read(path, "v")


def test_rows_must_fit_each_other(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"v": [[1, 2]], "label": "a"}, {"v": [[1], [2]], "label": "b"})
    with pytest.raises(DataError, match=r"row 1 has 2 channels and row 2 has 1: .*--channels-first"):
        read(path, "v")
    path = write_jsonl(tmp_path / "b.jsonl", {"x": [1, 2], "y": [1], "label": "a"})
    with pytest.raises(DataError, match="row 1: the column 'y' has 1 steps and 'x' 2"):
        read(path, "x,y")
    path = write_long(tmp_path / "a.csv")
    with pytest.raises(DataError, match="a table with a step a line needs --id"):
        read(path, "x,y")
    with pytest.raises(DataError, match="has no column 'z'"):
        read(path, "x,z", id="row")


def test_blank_labels_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", {"v": [1], "label": "a"}, {"v": [1], "label": " "})
    with pytest.raises(DataError, match="row 2: the column 'label' is blank"):
        read_rows(str(path), text="text", label="label", values=columns("v"))


@pytest.mark.parametrize(
    ("arrays", "values", "said"),
    [
        ({"v": np.ones(3)}, "v", r"shape \(3,\) where \(rows, steps\)"),
        ({"v": np.ones((2, 0))}, "v", r"shape \(2, 0\)"),
        ({"v": np.ones((2, 1, 1, 1))}, "v", r"shape \(2, 1, 1, 1\)"),
        ({"v": np.array([["a"], ["b"]])}, "v", "holds <U1 where numbers"),
        ({"v": np.ones((3, 2))}, "v", "different numbers of rows: 'label' 2, 'v' 3"),
        ({"v": np.ones((2, 2)), "v__scale": np.ones(2)}, "v", r"'v__scale' has the shape \(2,\) where one number"),
        ({"v": np.array([[1.0], [np.nan]])}, "v", "row 2, step 1, channel 1: nan isn't a finite number"),
        ({"v": np.ones((2, 2)) * (1 + 1j)}, "v", "has no column 'v'"),
        ({"v": np.ones((2, 2))}, "w", "has no column 'w'"),
        ({}, "*", "label"),
    ],
)
def test_what_is_wrong_with_an_archive_is_said(tmp_path, arrays, values, said):
    np.savez(tmp_path / "a.npz", label=np.array(["a", "b"]), **arrays)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "a.npz", values)


def test_objects_in_an_archive_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", allow_pickle=True, v=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="pickled objects"):
        read(tmp_path / "a.npz", "v")
    with pytest.raises(DataError, match="there is no file"):
        read(tmp_path / "b.npz", "v")


@given(st.integers(1, 4).flatmap(lambda c: st.lists(st.lists(NUMBERS, min_size=c, max_size=c), min_size=1, max_size=6)))
def test_lists_of_numbers_become_their_array(lists):
    array = parse_steps(lists, "row")
    assert array.tolist() == [[float(number) for number in step] for step in lists]
    assert (parse_steps(lists, "row", channels_first=True) == array.T).all()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=8,
)


@given(JSON, st.booleans())
def test_anything_else_is_refused_in_words(value, channels_first):
    try:
        array = parse_steps(value, "row 1", channels_first=channels_first)
    except DataError as error:
        assert str(error).startswith("row 1")  # noqa: PT017 - not raising is right as well
        return
    assert array.ndim == 2
    assert array.size == len(np.ravel(value))


@given(text=st.text(alphabet='pq,\n"0123456789.-+einfa \x00', max_size=60))
def test_any_table_is_rows_or_an_error(text, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text("row,t,x\n" + text)
    try:
        series = read_series(path, columns("x", id="row", time="t"))
    except HeadwaterError as error:
        assert "any.csv" in str(error)  # noqa: PT017 - not raising is right as well
        return
    assert all(np.isfinite(values).all() and values.shape[1] == 1 for values in series.values)


@pytest.mark.parametrize("given_options", [{"id": "i"}, {"values": "v", "time": "t"}, {"channels_first": True}])
def test_columns_that_say_nothing_by_themselves_are_refused(given_options):
    with pytest.raises(ValueError, match="add --"):
        ValueColumns(**given_options)
