"""Vocabulary remapping: each token of a target starts from the best that the source has for it."""

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.features.text import SPECIAL, UNKNOWN, TextFeaturizer, TextOptions
from headwater.records import COVERAGE_KINDS, Coverage
from headwater.report.sections import COVERAGE_WORDS
from headwater.transfer_learning.chinese import simplifier
from headwater.transfer_learning.matching import Matcher
from headwater.transfer_learning.vocabulary import Remapping

TRADITIONAL = str.maketrans("電視機後發髮", "电视机后发发")


def featurizer(*words, **options):
    return TextFeaturizer(TextOptions(lowercase=False, **options), (*SPECIAL, *words))


def matched(source, token, *, target="word", simplify=None):
    """Return the kind of a token's match, and the source's tokens that it is made of."""
    match = Matcher(source, featurizer(tokenizer=target), simplify)(token)
    return match.kind, [source.vocabulary[number] for number in match.numbers]


@pytest.fixture
def no_converter(monkeypatch):
    """A machine without the package that converts Chinese."""
    monkeypatch.setitem(sys.modules, "opencc", None)


@pytest.fixture
def converter(monkeypatch):
    """A stand-in for that package, which knows a few characters."""
    convert = SimpleNamespace(convert=lambda text: text.translate(TRADITIONAL))
    monkeypatch.setitem(sys.modules, "opencc", SimpleNamespace(OpenCC=lambda how: {"t2s": convert}[how]))


def test_each_token_takes_the_best_row_that_the_source_has():
    source = featurizer("good", "Film", "film", "USA", "电", "影", "Great", "GREAT")
    rows = torch.arange(len(source.vocabulary) * 2.0).view(-1, 2)
    target = featurizer("good", "FILM", "usa", "电影", "电视", "unheard", "great", "\uff46\uff49\uff4c\uff4d")
    remapping = Remapping(source, target)
    made = remapping.rows(rows)
    number = source.numbers
    mean = rows[len(SPECIAL) :].mean(0)
    expected = {
        "<pad>": rows[0],
        "<unk>": rows[1],
        "good": rows[number["good"]],
        "FILM": rows[number["film"]],  # lower case goes before other cases, though "Film" is more frequent
        "usa": rows[number["USA"]],
        "电影": rows[[number["电"], number["影"]]].mean(0),
        "电视": mean,
        "unheard": mean,
        "great": rows[number["Great"]],
        "\uff46\uff49\uff4c\uff4d": rows[number["film"]],
    }
    for token, row in expected.items():
        assert torch.equal(made[target.numbers[token]], row), token


def test_types_and_tokens_are_counted_by_kind():
    source, target = featurizer("good", "film", "USA", "Great"), featurizer("good", "FILM", "usa", "unheard", "great")
    coverage = Remapping(source, target).coverage(["good good FILM usa unheard", "great strange"])
    assert coverage.model_dump() == {
        "target_types": 6,
        "copied": 1,
        "folded": 3,
        "normalized": 0,
        "converted": 0,
        "composed": 0,
        "pieced": 0,
        "new": 2,
        "types_share": pytest.approx(4 / 6),
        "tokens_share": pytest.approx(5 / 7),
        "tokens": {"copied": 2, "folded": 3, "new": 2},
    }
    assert tuple(COVERAGE_WORDS) == COVERAGE_KINDS


def test_a_record_of_before_there_were_other_fall_backs_can_be_read():
    kept = {
        "target_types": 3,
        "copied": 1,
        "folded": 1,
        "composed": 0,
        "new": 1,
        "types_share": 0.6,
        "tokens_share": 0.5,
    }
    assert Coverage.model_validate(kept).tokens == {}


@pytest.mark.parametrize(
    ("token", "kind", "made_of"),
    [
        ("\uff26\uff29\uff2c\uff2d", "normalized", ["film"]),  # full-width capitals
        ("\ufb01ne", "normalized", ["fine"]),  # a ligature
        ("3\u00bd", "new", []),
        ("half", "normalized", ["\uff28alf"]),  # the other way round
        ("fi\u0301n", "normalized", ["f\u00edn"]),  # a letter and its accent
        ("FILM", "folded", ["film"]),  # the better fall-back goes first
    ],
)
def test_other_forms_of_the_same_characters_are_found(token, kind, made_of):
    source = featurizer("film", "fine", "\uff28alf", "f\u00edn", "\uff46ilm")
    assert matched(source, token) == (kind, made_of)


@pytest.mark.parametrize(
    ("token", "kind", "made_of"),
    [
        ("電視", "converted", ["电视"]),
        ("后", "converted", ["後"]),  # a simplified target of a traditional source
        ("發", "copied", ["發"]),
        ("发", "converted", ["發"]),  # of two, the more frequent one
        ("電視機", "new", []),
        ("電機後", "composed", ["电", "机", "後"]),  # of characters that are found in other ways
    ],
)
def test_traditional_and_simplified_characters_find_each_other(token, kind, made_of):
    source = featurizer("电视", "後", "發", "髮", "电", "机")
    assert matched(source, token, simplify=lambda text: text.translate(TRADITIONAL)) == (kind, made_of)
    without = matched(source, token)[0]
    assert without == (kind if kind == "copied" else "new")


def test_the_converter_is_used_where_it_is_installed(converter):
    assert simplifier()("電視") == "电视"
    remapping = Remapping(featurizer("电视"), featurizer("電視", "視"))
    coverage = remapping.coverage(["電視", "電視", "視"])
    assert (coverage.converted, coverage.new) == (0, 2)  # the word tokenizer takes each character for a word
    target = featurizer("電視", tokenizer="jieba")
    assert Remapping(featurizer("电视"), target).coverage(["電視"]).converted == 1
    assert not any("pip install" in note for note in remapping.notes(coverage))


def test_how_to_get_the_converter_is_said_only_where_it_could_help(no_converter):
    assert simplifier() is None
    said = {}
    for name, source, target in (
        ("helps", ("电视", "film"), ("電視", "plot")),
        ("all known", ("电视",), ("电视",)),
        ("not Chinese", ("电视", "film"), ("plot",)),
        ("source without Chinese", ("film",), ("電視",)),
    ):
        remapping = Remapping(featurizer(*source), featurizer(*target))
        said[name] = remapping.notes(remapping.coverage([]))
    (note,) = said.pop("helps")
    assert note.startswith("1 Chinese tokens are new")
    assert "pip install 'headwater[chinese]'" in note
    assert not any(said.values())


def test_the_real_converter_knows_words():
    pytest.importorskip("opencc")
    convert = simplifier()
    assert [convert(word) for word in ("電視機", "頭髮", "皇后", "乾隆", "film")] == [
        "电视机",
        "头发",
        "皇后",
        "乾隆",
        "film",
    ]


def test_chinese_words_are_composed_and_counted():
    source = featurizer("电", "影", tokenizer="char")
    target = featurizer("电影", "影", "电视", tokenizer="jieba")
    coverage = Remapping(source, target).coverage(["电影", "电视", "影"])
    assert (coverage.copied, coverage.composed, coverage.new) == (1, 1, 1)


@pytest.fixture(scope="module")
def subwords():
    """A featurizer of byte-pair pieces, among them ▁un, like, ly and single letters."""
    pytest.importorskip("tokenizers")
    texts = ["unlike unlike unlikely likely like unkind kindly kind"] * 4
    options = TextOptions(tokenizer="bpe", vocabulary_size=40, min_count=1)
    fitted = TextFeaturizer.fit(texts, options).tokenizer
    pieces = sorted(fitted._model.get_vocab().keys() - set(SPECIAL))
    return TextFeaturizer(options, (*SPECIAL, *pieces), fitted)


def test_a_word_starts_from_its_subwords(subwords):
    pieces = subwords.tokens("unkindly")
    assert len(pieces) > 1
    assert matched(subwords, "unkindly") == ("pieced", pieces)
    rows = torch.randn(len(subwords.vocabulary), 3)
    target = featurizer("unkindly", "kind")
    made = Remapping(subwords, target).rows(rows)
    for word in ("unkindly", "kind"):
        parts = [subwords.numbers[piece] for piece in subwords.tokens(word)]
        torch.testing.assert_close(made[target.numbers[word]], rows[parts].mean(0))


def test_letters_alone_are_no_subwords(subwords):
    for word in ("eden", "dike"):  # of the second, one piece has two letters
        assert UNKNOWN not in subwords.encode(word)
        assert matched(subwords, word)[0] == "new"
    assert matched(subwords, "qqq")[0] == "new"  # a letter that the source never saw
    assert matched(featurizer("f", "i", "l", "m", tokenizer="char"), "film")[0] == "new"


def test_a_subword_finds_the_word_that_it_is():
    assert matched(featurizer("film", "s"), "▁film", target="bpe") == ("copied", ["film"])
    assert matched(featurizer("film", "s"), "▁", target="bpe")[0] == "new"


def test_a_word_is_no_piece_of_another_word(subwords):
    assert {"kind", "▁kind"} <= set(subwords.vocabulary)
    assert matched(subwords, "kind") == ("copied", ["▁kind"])
    assert matched(subwords, "kind", target="bpe") == ("copied", ["kind"])
    assert matched(subwords, "<unk>") == ("copied", ["<unk>"])


def test_a_word_starts_from_what_the_sources_tokenizer_splits_it_into():
    source = featurizer("iPhone", "手", "机")
    assert matched(source, "iPhone手机", target="jieba") == ("pieced", ["iPhone", "手", "机"])
    assert matched(source, "iPhone手表", target="jieba")[0] == "new"


@settings(deadline=None)
@given(st.lists(st.text("abAB\uff21\uff41电電", min_size=1, max_size=3), unique=True), st.text(min_size=1, max_size=4))
def test_any_token_starts_from_somewhere_and_a_known_one_from_itself(words, token):
    source = featurizer(*words)
    kind, made_of = matched(source, token)
    assert kind in COVERAGE_KINDS
    assert (kind == "copied") == (token in source.numbers)
    assert bool(made_of) == (kind != "new")
    assert not set(made_of) & set(SPECIAL)
