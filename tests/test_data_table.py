"""Tables: every kind of file gives the same text, and every fault says what to do."""

import csv
import gzip
import json
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.data.table import read_table, write_table
from headwater.errors import DataError, MissingDependency

ROWS = {"text": ['say "hi",\nyou\t!', "  ", "ünïcödé\u2028x", "", "\r"], "label": ["a", "b", "a", "b", "NA"]}
SUFFIXES = [".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".csv.gz", ".JSONL.GZ"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read(tmp_path, suffix):
    path = tmp_path / f"rows{suffix}"
    write_table(path, ROWS)
    assert read_table(path, ["text", "label"]) == ROWS
    assert read_table(path, ["label"]) == {"label": ROWS["label"]}
    first = path.read_bytes()
    write_table(path, ROWS)
    assert path.read_bytes() == first
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".parquet", ".parquet.gz"])
def test_parquet(tmp_path, suffix):
    pytest.importorskip("pyarrow")
    path = tmp_path / f"rows{suffix}"
    write_table(path, {**ROWS, "n": [1.0, 2.5, 3.0, 4.0, 5.0], "yes": [True, False] * 2 + [True]})
    table = read_table(path, ["text", "n", "yes"])
    assert table == {
        "text": ROWS["text"],
        "n": ["1.0", "2.5", "3.0", "4.0", "5.0"],
        "yes": ["true", "false"] * 2 + ["true"],
    }


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(rows=st.lists(st.tuples(texts, texts), min_size=1, max_size=8), suffix=st.sampled_from(SUFFIXES))
def test_any_text_survives(rows, suffix):
    table = {"text": [first for first, _ in rows], "label, or \n": [second for _, second in rows]}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        write_table(path, table)
        assert read_table(path, list(table)) == table


@given(data=st.binary(max_size=200), suffix=st.sampled_from([*SUFFIXES, ".parquet"]))
def test_any_bytes_give_rows_or_a_data_error(data, suffix):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{suffix}"
        path.write_bytes(data)
        try:
            read_table(path, ["text"])
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017 - not raising is right as well


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (1.0, "1.0"),
        (True, "true"),
        (False, "false"),
        ("", ""),
        (-0.5, "-0.5"),
        (10**30, "1" + "0" * 30),
    ],
)
def test_json_values_become_text(tmp_path, value, text):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": value, "other": None}) + "\n\n")
    assert read_table(path, ["text"]) == {"text": [text]}


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbftext\r\nhi\r\n")
    assert read_table(path, ["text"]) == {"text": ["hi"]}


def test_a_long_text_is_read(tmp_path):
    path = tmp_path / "rows.csv"
    csv.field_size_limit(131072)
    path.write_text("text\n" + "x" * 200_000 + "\n")
    assert len(read_table(path, ["text"])["text"][0]) == 200_000


FAULTS = [
    ("rows.csv", b"", "is empty"),
    ("rows.jsonl", b" \n\n", "is empty"),
    ("rows.csv", b"text,label\n", "has a header but no rows"),
    (
        "rows.csv",
        b"txt,label\na,b\n",
        r"has no column 'text' \(did you mean 'txt'\?\); its columns: 'txt', 'label'",
    ),
    ("rows.csv", b"text,text\na,b\n", "has 2 columns named 'text'"),
    ("rows.csv", b"text,label\na,b\nc,d,e\n", r"row 2 \(line 3\): 3 fields where the header has 2"),
    ("rows.csv", b'text,label\n"a\nb",c\nd\n', r"row 2 \(line 4\): 1 fields where the header has 2"),
    ("rows.tsv", b'text\tlabel\n"a" b\tc\n', r"row 1 \(line 2\): .*double those inside"),
    ("rows.csv", b'text\n"never closed\n', r"row 1 \(line 2\): unexpected end of data"),
    ("rows.csv", b"text\nok\ncaf\xe9\n", r"byte 11 \(line 3\).*iconv -f WINDOWS-1252"),
    ("rows.csv", b"\xef\xbb\xbftext\nok\ncaf\xe9\n", r"byte 14 \(line 3\)"),
    ("rows.csv", "text\nhi\n".encode("utf-16"), "byte 0 .*iconv -f UTF-16"),
    ("rows.csv.gz", b"text\nhi\n", "isn't a whole gzip file"),
    ("rows.csv.gz", gzip.compress(b"text\nhi\n" * 99)[:-9], "isn't a whole gzip file"),
    ("rows.jsonl", b'{"text": "a"}\n\n{"text": \n', r"line 3: not JSON"),
    ("rows.jsonl", b"[" * 100_000, "line 1: not JSON"),
    ("rows.json", b'[{"text": "a"}]', "line 1: a list where an object was expected"),
    (
        "rows.jsonl",
        b'{"text": "a"}\n{"txt": "b"}\n',
        r"row 2 \(line 2\), has no column 'text' \(did you mean 'txt'",
    ),
    ("rows.jsonl", b'{"text": "a"}\n{"text": null}\n', "row 2: the column 'text' has no value"),
    ("rows.jsonl", b'{"text": NaN}\n', "row 1: the column 'text' has no value"),
    ("rows.jsonl", b'{"text": ["a"]}\n', "row 1: the column 'text' holds a list"),
    ("rows.jsonl", b'{"text": "\\ud83d"}\n', "holds half of a UTF-16 pair"),
    ("rows.parquet", b"PAR1 not really", "can't be read as Parquet"),
    ("rows.xlsx", b"PK", r"unknown suffix '.xlsx'.*known: .csv, .tsv"),
    ("rows.jsonll", b"{}", r"did you mean '.jsonl'\?"),
    ("rows", b"text\nhi\n", "unknown suffix ''"),
]


@pytest.mark.parametrize(("name", "data", "message"), FAULTS)
def test_each_fault_says_what_is_wrong(tmp_path, name, data, message):
    if "parquet" in name:
        pytest.importorskip("pyarrow")
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as error:
        read_table(path, ["text"])
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "reviews.csv").write_text("text\nhi\n")
    with pytest.raises(DataError, match=r"there is no file .*review.csv \(did you mean 'reviews.csv'\?\)"):
        read_table(tmp_path / "review.csv", ["text"])
    with pytest.raises(DataError, match="there is no file"):
        read_table(tmp_path / "gone" / "review.csv", ["text"])


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(DataError, match="can't read"):
        read_table(tmp_path / "rows.csv", ["text"])


def test_missing_values_of_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    write_table(path, {"text": ["a", None]})
    with pytest.raises(DataError, match="row 2: the column 'text' has no value"):
        read_table(path, ["text"])
    with pytest.raises(DataError, match="has no column 'txt'"):
        read_table(path, ["txt"])


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingDependency, match=r"headwater\[parquet\]"):
        read_table(tmp_path / "rows.parquet", ["text"])


def test_predictions_keep_their_types_in_json(tmp_path):
    write_table(tmp_path / "out.jsonl", {"text": ["a"], "probability": [0.25], "right": [True]})
    assert (tmp_path / "out.jsonl").read_text() == '{"text": "a", "probability": 0.25, "right": true}\n'
    write_table(tmp_path / "out.csv", {"text": ["a"], "probability": [0.25], "right": [True]})
    assert (tmp_path / "out.csv").read_text() == '"text","probability","right"\n"a",0.25,"true"\n'


def test_columns_of_unequal_length_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_table(tmp_path / "out.csv", {"text": ["a", "b"], "label": ["x"]})
    assert list(tmp_path.iterdir()) == []
