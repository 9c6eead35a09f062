"""The LAC network of jieba: read exactly, and proved by the words and names that it finds."""

import importlib.util
import itertools
import shutil
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import CheckpointError
from headwater.pretrained import paddle_lac

needs_jieba = pytest.mark.skipif(importlib.util.find_spec("jieba") is None, reason="jieba isn't installed")


@pytest.fixture(scope="module")
def network():
    return paddle_lac.read_lac()


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def tensor_file(values, kind=5, sizes=None):
    description = bytes([0x08, kind])
    for size in values.shape if sizes is None else sizes:
        description += b"\x10" + varint(size)
    return struct.pack("<IQIi", 0, 0, 0, len(description)) + description + values.astype("<f4").tobytes()


@needs_jieba
def test_shapes(network):
    assert network.embedding_VE.shape == (len(network.vocabulary), 128) == (20941, 128)
    assert network.transitions.shape == (len(network.tags) + 2, len(network.tags)) == (59, 57)
    assert network.emission_weight.shape == (57, 256)
    assert network.emission_bias.shape == (57,)
    assert [len(directions) for directions in network.layers] == [2, 2]
    for sizes, directions in zip([128, 256], network.layers, strict=True):
        for gru in directions:
            assert gru["weight_ih"].shape == (384, sizes)
            assert gru["weight_hh"].shape == (384, 128)
            assert gru["bias_ih"].shape == gru["bias_hh"].shape == (384,)
            assert not gru["bias_hh"].any()
            assert {value.dtype for value in gru.values()} == {np.dtype(np.float32)}


@needs_jieba
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "中国科学院计算技术研究所张三在上海出差",
            "中国科学院计算技术研究所/ORG 张三/PER 在/p 上海/LOC 出差/v",
        ),
        ("“张三”昨天在北京。", "“/w 张三/PER ”/w 昨天/TIME 在/p 北京/LOC 。/w"),
    ],
)
def test_it_finds_words_and_names(network, text, words):
    found = paddle_lac.tag(network, text)
    assert " ".join(f"{word}/{name}" for word, name in found) == words
    assert "".join(word for word, _ in found) == text


@needs_jieba
def test_a_wrong_gate_order_would_be_seen(network):
    """The sentence above proves nothing unless a wrong reading of the weights fails it."""

    def swap(value):
        reset, update, new = np.split(value, 3)
        return np.concatenate([update, reset, new])

    swapped = [[{name: swap(value) for name, value in gru.items()} for gru in pair] for pair in network.layers]
    wrong = paddle_lac.LacNetwork(**{**vars(network), "layers": swapped})
    text = "中国科学院计算技术研究所张三在上海出差"
    assert paddle_lac.tag(wrong, text) != paddle_lac.tag(network, text)


@needs_jieba
def test_odd_texts(network):
    assert paddle_lac.tag(network, " \n") == []
    assert "".join(word for word, _ in paddle_lac.tag(network, "😀 \ue000 ok")) == "😀 \ue000 ok"


@needs_jieba
def test_folding_leads_to_rows_that_were_trained(network):
    trained = dict(zip(network.vocabulary, network.trained_V, strict=True))
    assert not any(trained.get(char) for char in "\uff0c。\uff01\uff1f\uff21A")
    folded = paddle_lac.fold("".join(map(chr, paddle_lac.FOLDS)))
    assert len(folded) == len(paddle_lac.FOLDS)
    assert all(trained[char] for char in folded)
    assert paddle_lac.fold("你好\uff0c\uff21。") == "你好,a."
    assert network.trained_V.sum() == 16034


def test_one_gru_step_by_hand():
    """Paddle's own formula, u, r, c with h' = (1 - u) h + u c, gives what the converted weights give."""
    rng = np.random.default_rng(0)
    hidden, width, steps = 3, 2, 5
    fc, bias, own = rng.normal(size=(width, 9)), rng.normal(size=9), rng.normal(size=(1, 9))
    flat = rng.normal(size=27)
    tensors = {
        name: value.astype(np.float32)
        for name, value in [
            ("fc_0.w_0", fc),
            ("fc_0.b_0", bias),
            ("gru_0.b_0", own),
            ("gru_0.w_0", flat.reshape(3, 9)),
        ]
    }
    x_TD = rng.normal(size=(steps, width))
    gates_H2H, candidate_HH = flat[:18].reshape(3, 6), flat[18:].reshape(3, 3)
    h_H, expected = np.zeros(hidden), []
    for x_D in x_TD:
        x_3H = x_D @ fc + bias + own[0]
        u_H, r_H = np.split(1 / (1 + np.exp(-(x_3H[:6] + h_H @ gates_H2H))), 2)
        c_H = np.tanh(x_3H[6:] + (r_H * h_H) @ candidate_HH)
        h_H = (1 - u_H) * h_H + u_H * c_H
        expected.append(h_H)
    got = paddle_lac._run(paddle_lac._gru(tensors, 0), x_TD.astype(np.float32))
    assert np.allclose(got, expected, atol=1e-6)


def test_the_best_path_is_the_best_of_all_paths():
    rng = np.random.default_rng(1)
    emissions, transitions = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))

    def score(path):
        between = sum(transitions[2 + a, b] for a, b in itertools.pairwise(path))
        return transitions[0, path[0]] + transitions[1, path[-1]] + between + emissions[range(4), path].sum()

    best = max(np.ndindex(3, 3, 3, 3), key=score)
    assert paddle_lac._viterbi(emissions, transitions) == list(best)


@needs_jieba
def test_damaged_and_missing_files(tmp_path):
    folder = tmp_path / "lac"
    shutil.copytree(paddle_lac._jieba_folder(), folder)
    paddle_lac.read_lac(folder)
    data = bytearray((folder / "tag.dic").read_bytes())
    data[-2] ^= 1
    (folder / "tag.dic").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"tag.dic isn't the file of jieba 0\.42\.1"):
        paddle_lac.read_lac(folder)
    (folder / "tag.dic").unlink()
    with pytest.raises(CheckpointError, match=r"can't read .*tag\.dic"):
        paddle_lac.read_lac(folder)


def test_without_jieba(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install jieba"):
        paddle_lac.read_lac()


def test_a_tensor_file():
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(paddle_lac.parse_tensor(tensor_file(values), "x"), values)
    wide = np.arange(300, dtype=np.float32)
    assert np.array_equal(paddle_lac.parse_tensor(tensor_file(wide), "x"), wide)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        tensor_file(np.zeros(4))[:-1],
        tensor_file(np.zeros(4)) + b"\0",
        tensor_file(np.zeros(4), kind=6),
        tensor_file(np.zeros(4), sizes=[2]),
        tensor_file(np.zeros(4), sizes=[]),
        tensor_file(np.zeros(4), sizes=[2**62, 2**62]),
        struct.pack("<IQIi", 0, 0, 0, -1),
        struct.pack("<IQIi", 0, 0, 0, 2**31 - 1),
        struct.pack("<IQIi", 1, 0, 0, 2) + b"\x08\x05",
        struct.pack("<IQIi", 0, 1, 0, 2) + b"\x08\x05",
        struct.pack("<IQIi", 0, 0, 0, 2) + b"\x08\xff",
        struct.pack("<IQIi", 0, 0, 0, 12) + b"\x08" + b"\xff" * 11,
        struct.pack("<IQIi", 0, 0, 0, 2) + b"\x1a\x00",
    ],
)
def test_a_damaged_tensor_file(data):
    with pytest.raises(CheckpointError):
        paddle_lac.parse_tensor(data, "x")


@given(data=st.binary(max_size=64), position=st.integers(0, 40), whole=st.booleans())
def test_any_bytes_give_a_tensor_or_an_error(data, position, whole):
    good = tensor_file(np.ones((2, 2)))
    tried = data if whole else good[:position] + data + good[position + len(data) :]
    try:
        assert paddle_lac.parse_tensor(tried, "x").dtype == np.float32
    except CheckpointError as error:
        assert "x" in str(error)  # noqa: PT017 - not raising is right as well


@pytest.mark.parametrize("text", ["0\ta\n0\tb\n", "0\ta\n3\tb\n", "0\ta\nx\tb\n", "0\t\n", "0 a\n", ""])
def test_a_damaged_dictionary(text):
    with pytest.raises(CheckpointError):
        paddle_lac._parse_dictionary(text.encode(), "x")
    assert paddle_lac._parse_dictionary(b"0\ta\n2\tb\n", "x") == ["a", "", "b"]
