"""Generated text: drawn as the options say, equal to what the whole model predicts, the same for the same seed."""

from collections import Counter
from types import MappingProxyType

import pytest
import torch
from helpers import TINY, write_csv
from small_models import small_checkpoint

import headwater
from headwater.cli import main
from headwater.compression.verb import CompressOptions, compress
from headwater.data.rows import Rows
from headwater.errors import ConfigError
from headwater.features.text import BEGIN, END, PAD, UNKNOWN
from headwater.generation import GenerateOptions, draw, generate
from headwater.native import OFF, using
from headwater.pretraining import PretrainOptions, pretrain
from headwater.reshaping.verb import ReshapeOptions, reshape
from headwater.transfer_learning.options import TransferOptions
from headwater.transfer_learning.verb import transfer

LEARNING = MappingProxyType(
    {"task": "language_modeling", "bidirectional": False, "bptt": 10, "batch_size": 4, "epochs": 12, "patience": 0}
    | {"embedding_size": 16, "hidden_size": 16}
)
"""Options with which a language model learns two rows by heart."""
SHARES = torch.tensor([0.0, 0.0, 0.0, 0.1, 0.4, 0.2, 0.3])


def language_model(**encoder):
    return small_checkpoint(task={"name": "language_modeling"}, bidirectional=False, **encoder)


def drawn(logits, count=400, **options):
    generator = torch.Generator().manual_seed(0)
    return Counter(draw(logits, GenerateOptions(**options), generator) for _ in range(count))


def test_tokens_are_drawn_by_their_probability():
    found = drawn(SHARES.log(), 4000)
    assert {token: count / 4000 for token, count in found.items()} == pytest.approx(
        {3: 0.1, 4: 0.4, 5: 0.2, 6: 0.3}, abs=0.03
    )


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({"temperature": 0}, {4}),
        ({"temperature": 1e-300}, {4}),
        ({"top_k": 1}, {4}),
        ({"top_k": 3}, {4, 5, 6}),
        ({"top_k": 99}, {3, 4, 5, 6}),
        ({"top_p": 0.3}, {4}),
        ({"top_p": 0.41}, {4, 6}),
        ({"top_p": 0.89}, {4, 5, 6}),
        ({"top_p": 1e-9}, {4}),
        ({"top_k": 2, "top_p": 0.5}, {4}),  # 0.4 of the 0.7 that the two have
        ({"temperature": 9.0}, {3, 4, 5, 6}),
    ],
)
def test_only_likely_tokens_are_drawn_where_that_is_asked_for(options, tokens):
    assert drawn(SHARES.log(), **options).keys() == tokens


def test_a_low_temperature_favours_what_is_likely():
    cold, warm = (drawn(SHARES.log(), 2000, temperature=temperature)[4] for temperature in (0.5, 2.0))
    # 0.16 of 0.3 in squares; 0.632 of 1.942 in roots
    assert (cold / 2000, warm / 2000) == pytest.approx((0.533, 0.326), abs=0.04)


def test_what_stands_for_no_text_is_never_drawn():
    logits = torch.zeros(6)
    logits[[PAD, UNKNOWN, BEGIN]] = 50.0
    assert drawn(logits).keys() == {END, 4, 5}
    assert drawn(logits, temperature=0).keys() == {END}


@pytest.mark.parametrize("cell", ["lstm", "gru_reset_before"])
def test_each_token_is_the_likeliest_one_behind_all_before(cell):
    checkpoint = language_model(layers=2, cell=cell)
    (text,) = generate(checkpoint, GenerateOptions(prompt="w1 w2 never", length=12, temperature=0))
    model, numbers = checkpoint.model(), checkpoint.featurizer.encode(text)
    assert numbers[:3] == [checkpoint.featurizer.numbers["w1"], checkpoint.featurizer.numbers["w2"], UNKNOWN]
    tokens_1T = torch.tensor([[BEGIN, *numbers]])
    logits_TV = model(tokens_1T, torch.tensor([tokens_1T.shape[1]]))[0].detach()
    logits_TV[:, [PAD, UNKNOWN, BEGIN]] = -torch.inf
    expected = logits_TV[3:].argmax(1).tolist()
    assert numbers[3:] == expected[:-1]
    assert len(numbers) == 15 or expected[-1] == END


def test_the_same_seed_writes_the_same_texts_and_more_of_them_only_add():
    checkpoint = language_model()
    three = generate(checkpoint, GenerateOptions(prompt="w5", count=3, length=9))
    assert generate(checkpoint, GenerateOptions(prompt="w5", count=2, length=9)) == three[:2]
    assert len(set(three)) == 3
    assert all(text.startswith("w5") for text in three)
    assert all(1 <= len(text.split()) <= 10 for text in three)
    assert generate(checkpoint, GenerateOptions(prompt="w5", count=3, length=9, seed=1)) != three


def test_ways_to_compute_that_differ_by_rounding_write_the_same_texts(tmp_path):
    checkpoint = language_model()
    given = GenerateOptions(prompt="w5", count=10, length=20)
    texts = generate(checkpoint, given)
    with using(OFF):
        assert generate(checkpoint, given) == texts
    cut = given.model_copy(update={"top_k": 7, "top_p": 0.9})
    with using(OFF):
        portable = generate(checkpoint, cut)
    assert generate(checkpoint, cut) == portable != texts
    wide = ReshapeOptions(out=tmp_path / "wide", hidden_size=20, insert_layer=1, quiet=True)
    assert generate(reshape(checkpoint, wide), given) == texts


def test_a_blank_prompt_begins_with_the_row_and_a_long_one_is_refused():
    checkpoint = language_model()
    (text,) = generate(checkpoint, GenerateOptions(prompt="  _ ", length=4, seed=3))
    assert (text,) == tuple(generate(checkpoint, GenerateOptions(length=4, seed=3)))
    assert "<" not in text
    with pytest.raises(ConfigError, match="more than the 400 tokens"):
        generate(checkpoint, GenerateOptions(prompt="w1 " * 401))


def test_a_compressed_model_writes_too(tmp_path):
    compressed = compress(language_model(), CompressOptions(out=tmp_path / "int8", quiet=True))
    assert len(generate(compressed, GenerateOptions(count=2, length=5))) == 2


def test_a_backward_model_writes_what_stands_before_the_prompt(tmp_path):
    texts = ["one two three four", "a rose is red"] * 100
    data = write_csv(tmp_path / "rows.csv", Rows(texts, ["-", "+"] * 100, [], "toy", "0" * 64))
    given = TINY | LEARNING | {"data": data}
    made = pretrain(PretrainOptions(**given, direction="backward", out=tmp_path / "lm"))
    assert generate(made, GenerateOptions(prompt="is red", temperature=0)) == ["a rose is red"]
    assert generate(made, GenerateOptions(prompt="three four", temperature=0)) == ["one two three four"]
    options = TransferOptions(data=data, out=tmp_path / "t", epochs=1, rows=20, control=False, quiet=True)
    assert transfer(made, options).featurizer.encode("is red") == made.featurizer.encode("is red")


def test_what_was_learned_is_said_again_from_the_command_line(tmp_path, capsys):
    texts = ["one two, three (four) five.", "a rose is red"] * 100
    data = write_csv(tmp_path / "rows.csv", Rows(texts, ["-"] * len(texts), [], "toy", "0" * 64))
    given = TINY | LEARNING | {"data": data}
    pretrain(PretrainOptions(**given, out=tmp_path / "lm"))
    assert main(["generate", str(tmp_path / "lm"), "--prompt", "One two", "--temperature", "0", "--count", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == ["one two, three (four) five."] * 2
    assert headwater.generate(
        headwater.open_checkpoint(str(tmp_path / "lm")), headwater.GenerateOptions(prompt="a rose", top_k=1)
    ) == ["a rose is red"]
