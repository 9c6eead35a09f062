"""Data cards: a TOML file that says what a data set is, where it comes from and what bytes it gives.

Everything is pinned by SHA-256: the source distribution, each member that is read, and each split that is
produced, so the same card gives the same rows on every machine, or an error.
"""

from __future__ import annotations

import bisect
import hashlib
import html
import itertools
import json
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from headwater.data.fetch import cache_root, fetch_sdist, make_cache_folder, read_member
from headwater.errors import DataError, did_you_mean
from headwater.files import sha256_bytes, sha256_file, write_atomic

PREFIX = "card:"
MEMBER_LIMIT = 2**26
"""The largest member that a card may read (64 MiB)."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
"""Becomes a file's or a folder's name."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Row = dict[str, str]


class CardPart(BaseModel):
    """The base of all parts of a card: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Member(CardPart):
    """One file inside the source distribution."""

    path: str
    """Its name; `outer.tar.gz!inner.txt` reads a file of an archive inside the archive."""
    sha256: Sha256


class Source(CardPart):
    """The source distribution that carries the data."""

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.+!]*$")]
    sha256: Sha256
    members: Annotated[list[Member], Field(min_length=1)]


class Reader(CardPart):
    """How the members become rows."""

    name: str
    """A key of `READERS`."""
    options: dict[str, Any] = {}


class Split(CardPart):
    """One part of the rows."""

    share: Annotated[float, Field(gt=0.0, le=1.0)]
    """Share of the distinct texts, drawn by their hash."""
    rows: int
    sha256: Sha256
    """Of the JSON-lines file that the card gives."""


class Card(CardPart):
    """What a data set is, where it comes from and what bytes it gives."""

    name: Name
    title: str
    description: str
    task: Literal["classification"]
    language: str
    """ISO 639-1."""
    licence: str
    citation: str
    columns: dict[str, str]
    """Name and description of each column."""
    clients: str | None = None
    """The column that says who wrote a row, for federations."""
    source: Source
    reader: Reader
    splits: Annotated[dict[Name, Split], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.clients is not None and self.clients not in self.columns:
            raise ValueError(f"clients = {self.clients!r} isn't one of the columns {', '.join(self.columns)}")
        if abs(sum(split.share for split in self.splits.values()) - 1) > 1e-9:
            raise ValueError("the shares of the splits don't add up to 1")
        if self.reader.name not in READERS:
            hint = did_you_mean(self.reader.name, READERS)
            raise ValueError(f"unknown reader {self.reader.name!r}{hint}; known: {', '.join(READERS)}")
        return self

    @property
    def fingerprint(self) -> str:
        """The first 12 digits of the SHA-256 over everything that the card says."""
        return sha256_bytes(self.model_dump_json().encode())[:12]


class RatedSnippets(CardPart):
    """Options of the reader `rated_snippets`."""

    neutral_band: Annotated[float, Field(ge=0.0)] = 0.0
    """Rows whose rating is nearer to 0 than this are left out."""
    review: bool = False
    """Ids are `REVIEW_SENTENCE`: add the column `review`."""
    products: dict[str, tuple[int, int]] = {}
    """Product and its first and last review: add the column `product`."""


def rated_snippets(files: list[bytes], given: dict[str, Any]) -> Iterator[Row]:
    """Read lines of id, mean rating and text, separated by tabs; the label is the sign of the rating.

    Yields:
        Rows of `text`, `label` (`negative` or `positive`), `rating`, and by the options `review`, `product`.
    """
    options = RatedSnippets(**given)
    for number, line in ((number, line) for file in files for number, line in _lines(file)):
        try:
            identity, rating, text = line.split("\t")
            mean = float(rating)
        except ValueError as error:
            raise DataError(f"line {number}: expected id, rating and text separated by tabs") from error
        if mean == 0 or abs(mean) < options.neutral_band:
            continue
        # Some entities of these files were escaped twice ("&amp;#38;").
        text = html.unescape(html.unescape(text)).strip()
        row = {"text": text, "label": "positive" if mean > 0 else "negative", "rating": rating}
        review = identity.split("_")[0]
        if options.review:
            row["review"] = review
        if options.products:
            row["product"] = _product(options.products, int(review))
        yield row


def _product(products: dict[str, tuple[int, int]], review: int) -> str:
    for product, (first, last) in products.items():
        if first <= review <= last:
            return product
    raise DataError(f"review {review} belongs to none of the products {', '.join(products)}")


class OneFilePerLabel(CardPart):
    """Options of the reader `one_file_per_label`."""

    labels: list[str]
    """The label of each member, in their order."""


def one_file_per_label(files: list[bytes], given: dict[str, Any]) -> Iterator[Row]:
    """Read files of one text a line, one file a label.

    Yields:
        Rows of `text` and `label`.
    """
    options = OneFilePerLabel(**given)
    if len(options.labels) != len(files):
        raise DataError(f"{len(files)} members but {len(options.labels)} labels: give one label a member")
    for label, file in zip(options.labels, files, strict=True):
        for _, line in _lines(file):
            yield {"text": line.strip(), "label": label}


READERS: dict[str, Callable[[list[bytes], dict[str, Any]], Iterator[Row]]] = {
    "rated_snippets": rated_snippets,
    "one_file_per_label": one_file_per_label,
}


def _lines(data: bytes) -> Iterator[tuple[int, str]]:
    # Not splitlines(): it also breaks at characters that stand inside texts, such as U+2028.
    for number, line in enumerate(data.decode("utf-8-sig").split("\n"), start=1):
        if line.strip():
            yield number, line.rstrip("\r")


def available() -> list[str]:
    """Return the names of the cards that come with the package, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


def _folder() -> Any:
    return resources.files("headwater") / "data" / "cards"


def load_card(name_or_path: str) -> Card:
    """Read a card by its name, or a card of one's own by its path (`.toml`).

    Raises:
        DataError: There is no such card, or a key of it is unknown, missing or wrong.
    """
    if name_or_path.endswith(".toml"):
        place: Any = Path(name_or_path)
    elif name_or_path in available():
        place = _folder() / f"{name_or_path}.toml"
    else:
        known = available()
        raise DataError(
            f"unknown data card {name_or_path!r}{did_you_mean(name_or_path, known)}; "
            f"known: {', '.join(known)}; a card of your own is given by its path, ending in .toml"
        )
    try:
        return Card.model_validate(tomllib.loads(place.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"can't read the data card {name_or_path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"the data card {name_or_path} isn't TOML in UTF-8: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole card"
        reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise DataError(f"data card {name_or_path}: {key}: {reason}") from error


def materialize(card: Card, split: str) -> Path:
    """Return the JSON-lines file of a split, made from the pinned source unless the cache holds it whole.

    Rows stand in the order of their texts' hashes, so that any first rows are a fair draw.

    Raises:
        DataError: The split is unknown, the source can't be had, or something hasn't its pinned SHA-256.
        OutputError: The cache can't be written.
    """
    if split not in card.splits:
        raise DataError(
            f"data card {card.name!r} has no split {split!r}{did_you_mean(split, card.splits)}; "
            f"it has: {', '.join(card.splits)}"
        )
    parts = ("cards", card.name, card.fingerprint)
    path = cache_root().joinpath(*parts, f"{split}.jsonl")
    if path.is_file() and sha256_file(path) == card.splits[split].sha256:
        return path
    made = {name: _jsonl(rows) for name, rows in _split_rows(card, _distinct(_read_rows(card))).items()}
    for name, data in made.items():
        got, rows = sha256_bytes(data), data.count(b"\n")
        if (got, rows) != (card.splits[name].sha256, card.splits[name].rows):
            raise DataError(
                f"data card {card.name!r}: the split {name!r} came out with {rows} rows and SHA-256 {got}, "
                f"not as pinned; in a card of your own put these in, otherwise reinstall Headwater"
            )
    folder = make_cache_folder(*parts)
    for name, data in made.items():
        write_atomic(folder / f"{name}.jsonl", data)
    return path


def resolve(data: str) -> Path:
    """Return the file behind `card:NAME/SPLIT`, or the path itself for anything else.

    Raises:
        DataError: The card or the split is unknown, or the card's data can't be had.
    """
    if not data.startswith(PREFIX):
        return Path(data)
    name, _, split = data.removeprefix(PREFIX).rpartition("/")
    if not name:
        splits = ", ".join(f"{PREFIX}{split}/{part}" for part in load_card(split).splits)
        raise DataError(f"{data!r} names no split: give one of {splits}")
    return materialize(load_card(name), split)


def _read_rows(card: Card) -> list[Row]:
    source = card.source
    archive = fetch_sdist(source.package, source.version, source.sha256)
    files = [_read_pinned(archive, member) for member in source.members]
    where = f"data card {card.name!r}, reader {card.reader.name!r}"
    try:
        rows = list(READERS[card.reader.name](files, card.reader.options))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: reader.options.{key}: {first['msg']}") from error
    except (DataError, ValueError) as error:
        raise DataError(f"{where}: {error}") from error
    for row in rows:
        if row.keys() != card.columns.keys():
            raise DataError(f"{where}: it gives the columns {', '.join(row)}, the card has {', '.join(card.columns)}")
    return rows


def _read_pinned(archive: Path, member: Member) -> bytes:
    first, *inner = member.path.split("!")
    data = read_member(archive, first, MEMBER_LIMIT)
    for name in inner:
        data = read_member(data, name, MEMBER_LIMIT)
    if (got := sha256_bytes(data)) != member.sha256:
        raise DataError(f"{archive.name}: the member {member.path!r} has SHA-256 {got}, pinned is {member.sha256}")
    return data


def text_key(text: str) -> str:
    """Return what two texts share when they are the same but for case, width, spaces and punctuation."""
    return "".join(char for char in unicodedata.normalize("NFKC", text).casefold() if char.isalnum())


def _distinct(rows: list[Row]) -> dict[str, Row]:
    """Keep the first row of each text, but none of a text under two labels or without a letter or digit."""
    first: dict[str, Row] = {}
    torn = {""}
    for row in rows:
        key = text_key(row["text"])
        if first.setdefault(key, row)["label"] != row["label"]:
            torn.add(key)
    return {key: row for key, row in first.items() if key not in torn}


def _split_rows(card: Card, rows: dict[str, Row]) -> dict[str, list[Row]]:
    """Draw each text into a split by its hash, which other texts can't change."""
    # The prefix keeps this draw independent of any other one that hashes the same text.
    draws = sorted((hashlib.sha256(f"card split\0{key}".encode()).hexdigest(), row) for key, row in rows.items())
    edges = list(itertools.accumulate(split.share for split in card.splits.values()))
    made: dict[str, list[Row]] = {name: [] for name in card.splits}
    for digest, row in draws:
        # The last edge is left out: rounded, it may stand just below 1.
        made[list(made)[bisect.bisect(edges[:-1], int(digest[:16], 16) / 2**64)]].append(row)
    return made


def _jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
