"""Text to numbers: tokenizers, vocabularies that never depend on the rows' order, word vectors from files."""

import gzip
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.errors import CheckpointError, ConfigError, DataError
from headwater.features.text import PAD, SPECIAL, UNKNOWN, TextFeaturizer, TextOptions
from headwater.features.tokenizers import TOKENIZERS, make_tokenizer
from headwater.features.vectors import read_vectors

ENGLISH = ["The film wasn't bad.", "A bad, bad film!", "the plot is fine", "fine film"]
CHINESE = ["这部电影很好看", "电影不好看, 剧情很差", "很好的剧情", "电影很差"]
NAMES = sorted(TOKENIZERS)


def fitted(name, texts=tuple(ENGLISH + CHINESE), **options):
    return TextFeaturizer.fit(list(texts), TextOptions(tokenizer=name, min_count=1, **options))


def split(name, text):
    return make_tokenizer(name).split(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \t\n", []),
        ("It's NOT good!", ["It's", "NOT", "good", "!"]),
        ("don\u2019t", ["don\u2019t"]),
        ("很好看", ["很", "好", "看"]),
        ("iPhone很好, 3.5分", ["iPhone", "很", "好", ",", "3", ".", "5", "分"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("a_b", ["a", "b"]),
        ("😀 ok", ["😀", "ok"]),
    ],
)
def test_words_are_split(text, tokens):
    assert split("word", text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", []), ("a b", ["a", "b"]), ("\uff21\uff01", ["A", "!"]), ("很 好", ["很", "好"])],
)
def test_characters_are_split_and_made_half_width(text, tokens):
    assert split("char", text) == tokens


@pytest.mark.parametrize(
    ("text", "tokens"), [("", []), (" a \t\nb ", ["a", " ", "b"]), ("\uff21\u3000\uff01", ["A", " ", "!"])]
)
def test_white_space_is_one_space_where_it_is_kept(text, tokens):
    assert split("char_space", text) == tokens


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("word", "It's NOT good (at all), is it? $5 for 3 films; 50% off!"),
        ("word", "they said \u201cno\u201d\u2026"),
        ("word", "iPhone很好,《真的》很好。"),
        ("word", ""),
        ("char", "电影不好看,剧情很差"),
        ("char_space", "The film, a bad one."),
        ("jieba", "这部电影很好看。ok fine"),
        ("bpe", "fine film is a bad plot"),
    ],
)
def test_tokens_are_joined_as_the_text_was_spelled(name, text):
    tokenizer = make_tokenizer(name)
    tokenizer.fit([text] * 9, 60)
    assert tokenizer.join(tokenizer.split(text)) == text


@pytest.mark.parametrize(("name", "more"), [("word", "()\u201c-$。"), ("char_space", "()\u201c-$。"), ("bpe", "")])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_joined_is_split_into_the_same_tokens(name, more, data):
    words = data.draw(st.lists(st.sampled_from(["film", "bad", "很", ".", ",", "!", *more])))
    tokenizer = _cached(name).tokenizer
    tokens = tokenizer.split(" ".join(words))
    assert tokenizer.split(tokenizer.join(tokens)) == tokens


def test_jieba_finds_chinese_words_and_drops_blanks():
    assert split("jieba", "这部电影很好看 ok") == ["这部", "电影", "很", "好看", "ok"]
    assert split("jieba", "  ") == []


def test_byte_pairs_join_frequent_pieces_and_know_the_unknown():
    tokenizer = make_tokenizer("bpe")
    tokenizer.fit(["lower lowest low"] * 20, 60)
    assert tokenizer.split("low") == ["▁low"]
    assert "".join(tokenizer.split("slow")) == "▁slow"
    assert tokenizer.split("") == []
    assert tokenizer.split("q") == ["▁", "<unk>"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_becomes_at_least_one_known_number(name, text):
    featurizer = _cached(name)
    numbers = featurizer.encode(text)
    assert 1 <= len(numbers) <= 400
    assert all(0 <= number < len(featurizer.vocabulary) for number in numbers)


_CACHE = {}


def _cached(name):
    return _CACHE.setdefault(name, fitted(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_blank_text_is_one_unknown_token(name):
    assert _cached(name).encode("") == [UNKNOWN]
    assert _cached(name).encode("  ") == [UNKNOWN]


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_does_not_depend_on_the_order_of_the_rows(name):
    texts = [f"w{n % 7} common 电影{n % 3}" for n in range(40)]
    shuffled = texts.copy()
    random.Random(3).shuffle(shuffled)
    assert fitted(name, texts).vocabulary == fitted(name, shuffled).vocabulary


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_featurizer_reads_as_the_fitted_one(name, tmp_path):
    featurizer = fitted(name)
    for file, content in featurizer.files().items():
        (tmp_path / file).write_text(content, encoding="utf-8")
    loaded = TextFeaturizer.load(tmp_path, featurizer.options)
    texts = [*ENGLISH, *CHINESE, "", "never seen 从未"]
    assert loaded.vocabulary == featurizer.vocabulary
    assert loaded.encode_all(texts) == featurizer.encode_all(texts)
    assert loaded.files() == featurizer.files()


def test_the_vocabulary_is_ranked_by_count_then_by_the_token():
    featurizer = TextFeaturizer.fit(["b b a a c", "c d"], TextOptions(min_count=2))
    assert featurizer.vocabulary == (*SPECIAL, "a", "b", "c")
    assert featurizer.encode("a d c") == [4, UNKNOWN, 6]
    assert featurizer.vocabulary[PAD] == "<pad>"


def test_case_is_folded_only_if_asked():
    assert "The" not in fitted("word").numbers
    assert {"The", "the"} <= fitted("word", lowercase=False).numbers.keys()


def test_a_long_text_is_cut_and_a_large_vocabulary_too():
    assert len(fitted("word", max_length=3).encode("a b c d e")) == 3
    featurizer = fitted("char", vocabulary_size=12)
    assert len(featurizer.vocabulary) == 12


def test_a_backward_featurizer_reads_what_a_forward_one_does_from_its_end():
    forward, backward = (fitted("word", max_length=3, direction=direction) for direction in ("forward", "backward"))
    assert forward.vocabulary == backward.vocabulary
    assert forward.tokens("a bad fine film") == ["a", "bad", "fine"]
    assert backward.tokens("a bad fine film") == ["fine", "bad", "a"] == backward.turned(["a", "bad", "fine"])
    assert backward.encode("a bad") == forward.encode("a bad")[::-1]
    assert backward.encode("") == [UNKNOWN]


def test_texts_without_a_frequent_token_are_refused_with_a_way_out():
    with pytest.raises(DataError, match="--min-count"):
        TextFeaturizer.fit(["one two", "three"], TextOptions())


def test_the_special_tokens_cannot_be_taken_by_the_rows():
    class Pieces:
        def split(self, text):
            return text.split()

    featurizer = TextFeaturizer.fit(["<pad> <unk> word"] * 3, TextOptions(), Pieces())
    assert featurizer.vocabulary == (*SPECIAL, "word")


@pytest.mark.parametrize(
    "content",
    ["", "{}", "[1, 2]", '["<pad>"]', json.dumps([*SPECIAL, "a", "a"]), json.dumps(["a", *SPECIAL]), "[\u00e9"],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content):
    (tmp_path / "vocabulary.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match="vocabulary.json"):
        TextFeaturizer.load(tmp_path, TextOptions())


def test_broken_byte_pairs_are_refused(tmp_path):
    (tmp_path / "vocabulary.json").write_text(json.dumps([*SPECIAL, "a"]))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="byte-pair"):
        TextFeaturizer.load(tmp_path, TextOptions(tokenizer="bpe"))


def test_an_unknown_tokenizer_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="did you mean 'jieba'"):
        make_tokenizer("jeiba")
    with pytest.raises(ConfigError, match="tokenizer"):
        TextOptions.parse({"tokenizer": "words"})


WANTED = {"film": 4, "Bad": 5, "电影": 6}
LINES = "film 0.5 -1\nbad 1 2\nother 9 9\n电影 3 4\n"


def vectors_file(tmp_path, content, name="vectors.txt"):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


@pytest.mark.parametrize("name", ["vectors.txt", "vectors.vec.gz"])
@pytest.mark.parametrize("header", ["", "4 2\n"])
def test_vectors_are_read_plain_or_packed_with_or_without_a_header(tmp_path, name, header):
    found, size = read_vectors(vectors_file(tmp_path, header + LINES, name), WANTED)
    assert size == 2
    assert {number: vector.tolist() for number, vector in found.items()} == {4: [0.5, -1], 5: [1, 2], 6: [3, 4]}
    assert all(vector.dtype == np.float32 for vector in found.values())


def test_the_exact_word_goes_before_the_folded_one(tmp_path):
    found, _ = read_vectors(vectors_file(tmp_path, "bad 1 1\nBad 2 2\n"), {"Bad": 5})
    assert found[5].tolist() == [2, 2]


def test_a_space_at_the_end_of_a_line_is_no_number(tmp_path):
    found, size = read_vectors(vectors_file(tmp_path, "2 2\nfilm 1 2 \nbad 3 4 \n"), {"film": 4})
    assert (size, found[4].tolist()) == (2, [1, 2])


def test_a_word_with_spaces_is_no_broken_line(tmp_path):
    found, _ = read_vectors(vectors_file(tmp_path, "film 1 2\n. . . 5 6\n. 3 4\n"), {".": 4, "film": 5})
    assert {number: vector.tolist() for number, vector in found.items()} == {5: [1, 2], 4: [3, 4]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no vectors"),
        ("film 1 2\nbad 1\n", "line 2: 1 numbers where 2"),
        ("film 1 x\n", "line 1: expected a word and 2 numbers"),
        ("film 1 nan\n", "finite"),
        ("film 1 inf\n", "finite"),
    ],
)
def test_a_line_that_is_no_vector_is_refused_with_its_number(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_vectors(vectors_file(tmp_path, content), {"film": 4, "bad": 5})


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match="nothing.txt"):
        read_vectors(tmp_path / "nothing.txt", WANTED)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 1 2\n")
    with pytest.raises(DataError, match="latin.txt"):
        read_vectors(tmp_path / "latin.txt", WANTED)
    whole = gzip.compress(LINES.encode())
    (tmp_path / "cut.gz").write_bytes(whole[:-9])
    with pytest.raises(DataError, match="cut.gz"):
        read_vectors(tmp_path / "cut.gz", WANTED)
