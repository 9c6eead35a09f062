"""Reading columns of text from CSV, TSV, JSON lines and Parquet files, and writing predictions to them.

A file's suffix tells its kind, and `.gz` may follow it. Rows are counted from 1, without the header.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from headwater.errors import DataError, MissingDependency, did_you_mean
from headwater.files import write_atomic

Columns = dict[str, list[str]]
RawColumns = dict[str, list[Any]]
"""Values as the file has them: texts of a CSV or TSV file, else what JSON or Parquet gives."""

FIELD_LIMIT = 2**24
"""The longest CSV field in characters; Python's own limit of 131,072 is less than a long document."""
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
}
DELIMITERS = {"csv": ",", "tsv": "\t"}


def read_table(path: Path, columns: Sequence[str]) -> Columns:
    """Read the asked columns of a file, every value as text (`1`, `1.0`, `true`).

    Args:
        path: A `.csv`, `.tsv`, `.parquet`, `.jsonl`, `.ndjson` or `.json` file, plain or followed by `.gz`;
            the last three hold one object a line.
        columns: The columns to read; others are not looked at.

    Returns:
        Each asked column with its values in the order of the file. Blank texts stay.

    Raises:
        DataError: The file is missing, empty, broken, of an unknown kind or not UTF-8, a column is missing,
            or a value is missing or isn't a text, a number or a truth value.
        MissingDependency: It is a Parquet file and pyarrow isn't installed.
    """
    table = read_raw(path, columns)
    return {
        column: [plain_text(value, path, row, column) for row, value in enumerate(values, start=1)]
        for column, values in table.items()
    }


def read_raw(path: Path, columns: Sequence[str]) -> RawColumns:
    """Read the asked columns of a file, every value as the file has it; the rest is as in `read_table`."""
    kind, packed = _kind(path)
    data = _read_bytes(path, packed=packed)
    if not data.strip():
        raise DataError(f"{path} is empty: give a file with at least one row")
    table: RawColumns
    if kind == "parquet":
        table = read_parquet(path, data, columns)
    elif kind == "jsonl":
        table = _read_jsonl(path, _decode(path, data), columns)
    else:
        table = _read_csv(path, _decode(path, data), columns, DELIMITERS[kind])
    if columns and not table[columns[0]]:
        raise DataError(f"{path} has a header but no rows: give a file with at least one row")
    return table


def write_table(path: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of equal length to a file whose suffix says the kind, as a whole or not at all.

    Args:
        path: As for `read_table`.
        rows: Each column with its values: text, numbers or truth values.

    Raises:
        DataError: The suffix is unknown.
        OutputError: The disk is full or the place can't be written.
        MissingDependency: A Parquet file is asked and pyarrow isn't installed.
    """
    kind, packed = _kind(path)
    if kind == "parquet":
        data = _parquet_bytes(rows)
    elif kind == "jsonl":
        records = (dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True))
        data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    else:
        stream = io.StringIO(newline="")
        # By itself csv leaves a text with a carriage return unquoted, which no reader gets back.
        writer = csv.writer(stream, delimiter=DELIMITERS[kind], lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(rows)
        writer.writerows(map(_plain, values) for values in zip(*rows.values(), strict=True))
        data = stream.getvalue().encode()
    # A fixed time makes equal rows give equal bytes.
    write_atomic(path, gzip.compress(data, mtime=0) if packed else data)


def _kind(path: Path) -> tuple[str, bool]:
    """Return the kind of a file and whether it is packed."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    suffix = Path(name.removesuffix(".gz")).suffix
    if suffix not in KINDS:
        raise DataError(
            f"{path}: unknown suffix {suffix!r}{did_you_mean(suffix, KINDS)}; "
            f"known: {', '.join(KINDS)}, each plain or followed by .gz"
        )
    return KINDS[suffix], packed


def _read_bytes(path: Path, *, packed: bool) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if packed else data
    except FileNotFoundError as error:
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"there is no file {path}{did_you_mean(path.name, siblings)}") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} isn't a whole gzip file ({error}): pack or copy it again") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from behind the mark that it skipped.
        offset = error.start + (len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0)
        line = data.count(b"\n", 0, offset) + 1
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        encoding = "UTF-16" if wide else "WINDOWS-1252"
        guess = "it begins like UTF-16" if wide else "put its real encoding, such as GB18030, in place of WINDOWS-1252"
        raise DataError(
            f"{path} isn't UTF-8: byte {offset} (line {line}) can't be read; convert it, for example with "
            f"iconv -f {encoding} -t UTF-8 ({guess})"
        ) from error


def check_columns(path: Path, asked: Iterable[str], there: Sequence[str], where: str = "") -> None:
    """Refuse columns that aren't there, or are there several times."""
    for column in asked:
        if column not in there:
            listed = ", ".join(repr(name) for name in there)
            raise DataError(
                f"{path}{where} has no column {column!r}{did_you_mean(column, there)}; its columns: {listed}"
            )
        if there.count(column) > 1:
            raise DataError(f"{path} has {there.count(column)} columns named {column!r}: rename all but one")


def _read_csv(path: Path, text: str, columns: Sequence[str], delimiter: str) -> RawColumns:
    csv.field_size_limit(max(FIELD_LIMIT, csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    table: RawColumns = {column: [] for column in columns}
    row = 0
    try:
        for fields in reader:
            if not fields:
                continue
            if header is None:
                header = fields
                check_columns(path, columns, header)
                continue
            row += 1
            if len(fields) != len(header):
                raise DataError(
                    f"{path}, row {row} (line {reader.line_num}): {len(fields)} fields where the "
                    f"header has {len(header)}: put a text that holds {delimiter!r} or a line break between "
                    "quotation marks"
                )
            for column in columns:
                table[column].append(fields[header.index(column)])
    except csv.Error as error:
        raise DataError(
            f"{path}, row {row + 1} (line {reader.line_num}): {error}: put a text that holds "
            'quotation marks between quotation marks and double those inside, "like ""this"""'
        ) from error
    return table


def _read_jsonl(path: Path, text: str, columns: Sequence[str]) -> RawColumns:
    table: RawColumns = {column: [] for column in columns}
    for row, (number, line) in enumerate(_lines(text), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}): each line holds one object") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, line {number}: a {type(record).__name__} where an object was expected: "
                'write one object a line, like {"text": "...", "label": "..."}'
            )
        check_columns(path, columns, list(record), f", row {row} (line {number}),")
        for column in columns:
            table[column].append(record[column])
    return table


def _lines(text: str) -> Iterator[tuple[int, str]]:
    # Not splitlines(): JSON texts may hold U+2028 and others as they are.
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def read_parquet(path: Path, data: bytes, columns: Sequence[str]) -> RawColumns:
    """Read the asked columns from the content of a Parquet file; see `read_raw`, `path` is for messages alone."""
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(arrow.BufferReader(data))
        check_columns(path, columns, file.schema_arrow.names)
        table = file.read(columns=list(columns))
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise DataError(f"{path} can't be read as Parquet ({reason}): write it again") from error
    return {column: table[column].to_pylist() for column in columns}


def _parquet_bytes(rows: Mapping[str, Sequence[Any]]) -> bytes:
    arrow, parquet = _pyarrow()
    stream = io.BytesIO()
    parquet.write_table(arrow.table({name: list(values) for name, values in rows.items()}), stream)
    return stream.getvalue()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingDependency("pyarrow", extra="parquet", purpose="a Parquet file") from error
    return pa, pq


def _plain(value: Any) -> Any:
    """Return the value as it stands in text files."""
    return str(value).lower() if isinstance(value, bool) else value


def plain_text(value: Any, path: Path, row: int, column: str) -> str:
    """Return a value as text (`1`, `1.0`, `true`).

    Raises:
        DataError: It is missing, or no text, number or truth value.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{path}, row {row}: the column {column!r} has no value: fill it in or leave the row out")
    if not isinstance(value, str | int | float):
        raise DataError(
            f"{path}, row {row}: the column {column!r} holds a {type(value).__name__} where a text, a "
            "number or a truth value was expected"
        )
    text = str(_plain(value))
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise DataError(
            f"{path}, row {row}: the column {column!r} holds half of a UTF-16 pair (such as \\ud83d alone): "
            "a text was cut inside a character; write the file again"
        )
    return text
