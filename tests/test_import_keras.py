"""Keras's layers compute here what its formulas, written out below, compute.

Shapes: T time, D input, H hidden, G gates.
"""

import importlib.util
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch
from foreign_weights import TEXTS, WORDS, bring_in, numbers, states_of

from headwater.errors import CheckpointError, ConfigError, MissingDependency
from headwater.pretrained import keras_file
from headwater.records import StageRecord

h5py = pytest.importorskip("h5py")
D, H = 6, 5
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(x_T4H, recurrent, bias, h, c, activation):
    i, f, g, o = np.split(x_T4H + h @ recurrent + bias, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_after(x_3H, recurrent, bias, h, c, activation):
    z, r, n = np.split(x_3H, 3)
    uz, ur, un = np.split(h @ recurrent + bias, 3)
    z, r = sigmoid(z + uz), sigmoid(r + ur)
    return z * h + (1 - z) * np.tanh(n + r * un), c


def gru_before(x_3H, recurrent, bias, h, c, activation):
    z, r, n = np.split(x_3H, 3)
    uz, ur = np.split(h @ recurrent[:, : 2 * H], 2)
    z, r = sigmoid(z + uz), sigmoid(r + ur)
    return z * h + (1 - z) * np.tanh(n + (r * h) @ recurrent[:, 2 * H :]), c


def simple(x_H, recurrent, bias, h, c, activation):
    return activation(x_H + h @ recurrent + bias), c


def run(step, x_TD, cell, activation=np.tanh):
    """Run a layer of Keras over a row: kernel (D, GH), recurrent kernel (H, GH), biases of inputs and states."""
    kernel, recurrent, bias, state_bias = cell
    h, c, out = np.zeros(H), np.zeros(H), []
    for x_D in x_TD:
        h, c = step(x_D @ kernel + bias, recurrent, state_bias, h, c, activation)
        out.append(h)
    return np.array(out)


def draw(gates, *, inputs=D, seed=0):
    rng = np.random.default_rng(seed)
    columns = gates * H
    return [rng.normal(size=size) * 0.5 for size in ((inputs, columns), (H, columns), (columns,), (columns,))]


EMBEDDING = np.random.default_rng(9).normal(size=(len(WORDS), D))
PLAIN = {"class_name": "LSTM", "activation": "tanh", "recurrent_activation": "sigmoid"}


def cell_of(cell, *, bias="one"):
    """Return a cell's weights as Keras names them."""
    made = {"kernel:0": cell[0], "recurrent_kernel:0": cell[1]}
    biases = {"one": cell[2], "two": np.stack(cell[2:]), "flat": np.concatenate(cell[2:])}
    return made | ({"bias:0": biases[bias]} if bias else {})


def write(path, layers, *, configs=None, whole=True):
    """Write layers, each name to its weights, the embedding first, as `model.save` or `save_weights` lays them out."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole else file
        layers = {"embedding": {"embeddings:0": EMBEDDING}} | layers
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, weights in layers.items():
            group = root.create_group(layer)
            names = [f"{layer}/{name}" for name in weights]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, value in zip(names, weights.values(), strict=True):
                group[name] = value.astype(np.float32)
        if configs is not None:
            file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": configs}})
    return path


def config(name, kind, **settings):
    return {"class_name": kind, "config": {"name": name} | settings}


def assert_equal(checkpoint, run_row):
    for text in TEXTS:
        expected = torch.from_numpy(run_row(EMBEDDING[numbers(text)])).float()
        torch.testing.assert_close(states_of(checkpoint, text), expected, atol=1e-6, rtol=0)


SIGMOID = {"activation": "tanh", "recurrent_activation": "sigmoid"}


@pytest.mark.parametrize(
    ("kind", "step", "bias", "settings", "cell"),
    [
        ("LSTM", lstm, "one", SIGMOID, "lstm"),
        ("LSTM", lstm, None, SIGMOID, "lstm"),
        ("GRU", gru_after, "two", SIGMOID | {"reset_after": True}, "gru"),
        ("GRU", gru_after, None, SIGMOID | {"reset_after": True}, "gru"),
        ("GRU", gru_before, "one", SIGMOID | {"reset_after": False}, "gru_reset_before"),
        ("GRU", gru_before, "one", SIGMOID, "gru_reset_before"),
        ("SimpleRNN", simple, "one", {"activation": "tanh"}, "rnn"),
        ("SimpleRNN", simple, "one", {"activation": "relu"}, "rnn_relu"),
    ],
)
def test_a_layer_computes_what_keras_computes(kind, step, bias, settings, cell, tmp_path):
    drawn = draw(GATES[kind])
    if bias != "two":
        drawn[3] *= 0
    if bias is None:
        drawn[2] *= 0
    path = write(tmp_path / "k.h5", {"rnn": cell_of(drawn, bias=bias)}, configs=[config("rnn", kind, **settings)])
    checkpoint = bring_in(path)
    assert checkpoint.config.encoder.cell == cell
    activation = {"relu": lambda x: np.maximum(x, 0)}.get(settings["activation"], np.tanh)
    assert_equal(checkpoint, lambda x_TD: run(step, x_TD, drawn, activation))
    assert "The cells compute the same." in " ".join(StageRecord.load(tmp_path / "model").notes)


def to_cudnn(cell):
    """Return a cell in the layout of the CuDNN layers, by Keras's own conversion (`_convert_rnn_weights`)."""
    kernel, recurrent, *biases = cell
    gates = kernel.shape[1] // H
    turned = [k.T.reshape(k.shape, order="C") for k in np.split(kernel, gates, axis=1)]
    return [np.hstack(turned), np.hstack([k.T for k in np.split(recurrent, gates, axis=1)]), *biases]


@pytest.mark.parametrize(("kind", "step", "cell"), [("LSTM", lstm, "lstm"), ("GRU", gru_after, "gru")])
@pytest.mark.parametrize("described", [True, False])
def test_a_cudnn_layer_is_known_by_its_bias(kind, step, cell, described, tmp_path):
    drawn = draw(GATES[kind])
    configs = [config("rnn", f"CuDNN{kind}")] if described else None
    layers = {"rnn": cell_of(to_cudnn(drawn), bias="flat")}
    checkpoint = bring_in(write(tmp_path / "k.hdf5", layers, configs=configs, whole=described))
    assert checkpoint.config.encoder.cell == cell
    assert_equal(checkpoint, lambda x_TD: run(step, x_TD, drawn))


def test_two_layers_in_two_directions(tmp_path):
    cells = [[draw(3, inputs=size, seed=seed) for seed in (2 * n, 2 * n + 1)] for n, size in enumerate((D, 2 * H))]
    layers, configs = {}, []
    for number, pair in enumerate(cells):
        name = f"both_{number}"
        layers[name] = {
            f"{side}_gru/gru_cell/{part}": value
            for side, cell in zip(("forward", "backward"), pair, strict=True)
            for part, value in cell_of(cell, bias="two").items()
        }
        inner = {"class_name": "GRU", "config": SIGMOID | {"name": "gru", "reset_after": True}}
        configs.append(config(name, "Bidirectional", merge_mode="concat", layer=inner))
    path = write(tmp_path / "k.h5", layers, configs=configs)
    with pytest.raises(ConfigError, match="2 recurrent stacks, 'both_0', 'both_1'"):
        bring_in(path)

    def run_row(x_TD):
        for forward, backward in cells:
            x_TD = np.hstack([run(gru_after, x_TD, forward), run(gru_after, x_TD[::-1], backward)[::-1]])
        return x_TD

    assert_equal(bring_in(path, prefix="both_0,both_1"), run_row)


@pytest.mark.parametrize(
    ("forward", "backward", "message"),
    [
        ({"go_backwards": True}, None, "'both' reads backwards"),
        ({}, {"go_backwards": False}, "the backward direction of 'both' reads forwards"),
        ({}, {"activation": "relu"}, "the backward direction of 'both' has the activation 'relu'"),
        (
            {},
            {"recurrent_activation": "hard_sigmoid"},
            "direction of 'both' has the recurrent activation 'hard_sigmoid'",
        ),
        ({}, {"kind": "MyGRU"}, "the backward direction of 'both' is of the class 'MyGRU'"),
        ({}, {"reset_after": False}, "'both' has the cells 'gru', 'gru_reset_before' in its directions"),
        ({}, {}, ""),
        ({}, None, ""),
    ],
)
def test_each_direction_is_held_to_its_own_description(forward, backward, message, tmp_path):
    usual = {"kind": "GRU", "name": "gru", "reset_after": True} | SIGMOID
    layer = config(**usual | forward)
    inner = (
        {"layer": layer}
        if backward is None
        else {"layer": layer, "backward_layer": config(**usual | {"go_backwards": True} | backward)}
    )
    cells = {
        f"{side}_gru/gru_cell/": cell_of(draw(3, seed=n), bias=None) for n, side in enumerate(("forward", "backward"))
    }
    weights = {place + part: value for place, cell in cells.items() for part, value in cell.items()}
    described = config("both", "Bidirectional", merge_mode="concat", **inner)
    path = write(tmp_path / "k.h5", {"both": weights}, configs=[described])
    if message:
        with pytest.raises(CheckpointError, match=rf"can't be shown to be imported exactly: .*{message}.*--inexact"):
            bring_in(path)
    checkpoint = bring_in(path, inexact=bool(message))
    assert (checkpoint.config.encoder.cell, checkpoint.config.encoder.bidirectional) == ("gru", True)


def test_a_layer_with_one_cell_more_than_described_is_in_doubt(tmp_path):
    weights = {f"{side}/{part}": value for side in ("forward", "backward") for part, value in cell_of(draw(4)).items()}
    path = write(tmp_path / "k.h5", {"rnn": weights}, configs=[config("rnn", "LSTM", **SIGMOID)])
    with pytest.raises(CheckpointError, match="'rnn' has 2 cells, where its description has 1"):
        bring_in(path)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (None, "doesn't tell the activations of 'rnn'"),
        (config("rnn", "LSTM", activation="tanh", recurrent_activation="hard_sigmoid"), "activation 'hard_sigmoid'"),
        (config("rnn", "LSTM", activation="relu", recurrent_activation="sigmoid"), "the activation 'relu'"),
        (config("rnn", "LSTM", activation={"class": "mine"}), "the activation"),
        (config("rnn", "PeepholeLSTM", **SIGMOID), "of the class 'PeepholeLSTM'"),
        (config("rnn", "LSTM", go_backwards=True, **SIGMOID), "reads backwards"),
        (
            config("rnn", "Bidirectional", merge_mode="sum", layer=config("rnn", "LSTM", **SIGMOID)),
            "merges its directions by 'sum'",
        ),
    ],
)
def test_what_may_compute_something_else_is_taken_only_on_demand(described, message, tmp_path):
    drawn = draw(4)
    configs = [described] if described else None
    path = write(tmp_path / "k.h5", {"rnn": cell_of(drawn)}, configs=configs)
    with pytest.raises(CheckpointError, match=rf"can't be shown to be imported exactly: .*{message}.*--inexact"):
        bring_in(path)
    assert not (tmp_path / "model").exists()
    checkpoint = bring_in(path, inexact=True)
    drawn[3] *= 0
    assert_equal(checkpoint, lambda x_TD: run(lstm, x_TD, drawn))
    assert message in " ".join(StageRecord.load(tmp_path / "model").notes)


def test_what_the_file_does_not_tell_the_user_must(tmp_path):
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(1))})
    with pytest.raises(ConfigError, match="add --cell rnn"):
        bring_in(path)
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(3), bias=None)})
    with pytest.raises(ConfigError, match="with 3 gates are: add --cell gru or gru_reset_before"):
        bring_in(path, inexact=True)
    assert bring_in(path, inexact=True, cell="gru_reset_before").config.encoder.cell == "gru_reset_before"


def changed(**parts):
    return {"rnn": {k: v for k, v in (cell_of(draw(4)) | parts).items() if v is not None}}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (changed(**{"kernel:0": None}), "has recurrent, bias, where"),
        (changed(**{"more:0": np.zeros(1)}), "has kernel, recurrent, bias, , where"),
        (changed(**{"kernel:0": np.zeros((D, 19))}), r"a kernel of \(6, 19\)"),
        (changed(**{"kernel:0": np.zeros((9, 20))}), r"the first layer reads 9 numbers"),
        (changed(**{"recurrent_kernel:0": np.zeros((H, 11))}), r"a recurrent kernel of \(5, 11\)"),
        (changed(**{"bias:0": np.zeros(19)}), r"a bias of \(19,\)"),
        (changed(**{"bias:0": np.full(20, np.nan)}), "aren't finite"),
        (
            {"rnn": {f"{n}/{k}": v for n in "abc" for k, v in cell_of(draw(4)).items()}},
            r"holds 3 cells \('rnn/a', 'rnn/b', 'rnn/c'\)",
        ),
    ],
)
def test_weights_that_make_no_layer_are_refused(layers, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        bring_in(write(tmp_path / "k.h5", layers, configs=[config("rnn", "LSTM", **SIGMOID)]))


def spoil(path, change):
    with h5py.File(path, "a") as file:
        change(file)


def link_outside(file):
    group = file["model_weights/rnn/rnn"]
    del group["bias:0"]
    group["bias:0"] = h5py.ExternalLink("other.h5", "/bias")


def store_outside(file):
    group = file["model_weights/rnn/rnn"]
    del group["bias:0"]
    group.create_dataset("bias:0", (20,), "f4", external=[("/etc/hostname", 0, 80)])


def link_the_whole_outside(file):
    del file["model_weights"]
    file["model_weights"] = h5py.ExternalLink("other.h5", "/")


def make_large(file):
    group = file["model_weights/rnn/rnn"]
    del group["bias:0"]
    group.create_dataset("bias:0", (2**26,), "f4", chunks=(2**20,), compression="gzip")


def make_a_large_chunk(file):
    group = file["model_weights/rnn/rnn"]
    del group["bias:0"]
    group.create_dataset("bias:0", (20,), "f4", maxshape=(None,), chunks=(2**24,), compression="gzip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (make_a_large_chunk, "unpacks to more than 64 times its size"),
        (link_outside, "'bias:0' is missing, or links elsewhere"),
        (link_the_whole_outside, "'model_weights' is missing, or links elsewhere"),
        (store_outside, "lie in another file"),
        (make_large, "unpacks to more than 64 times its size"),
        (lambda file: file["model_weights"].attrs.pop("layer_names"), "has no layer_names"),
        (lambda file: file["model_weights/rnn"].attrs.pop("weight_names"), "isn't a whole HDF5 file of Keras"),
        (lambda file: file["model_weights"].pop("rnn"), "'rnn' is missing"),
        (lambda file: file.attrs.create("model_config", "{"), "isn't a whole HDF5 file of Keras"),
        (lambda file: file.attrs.create("model_config", "7"), "isn't a whole HDF5 file of Keras"),
    ],
)
def test_a_file_that_is_not_kerass_is_refused(change, message, tmp_path):
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(4))}, configs=[config("rnn", "LSTM", **SIGMOID)])
    spoil(path, change)
    with pytest.raises(CheckpointError, match=message):
        bring_in(path)


def test_a_file_cut_short_is_refused(tmp_path):
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(4))}, configs=[config("rnn", "LSTM", **SIGMOID)])
    data = path.read_bytes()
    for length in (0, 8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"k\.h5 isn't a whole HDF5 file of Keras"):
            bring_in(path)


def test_a_file_that_crashes_the_library_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(4))})
    monkeypatch.setattr(keras_file, "_read_file", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(CheckpointError, match=r"k\.h5 isn't a whole HDF5 file of Keras \(WorkerError"):
        bring_in(path)


def test_reading_takes_limited_time_and_memory(tmp_path, monkeypatch):
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(4))})
    monkeypatch.setattr(keras_file, "_descriptions", lambda _: bytes(2**32))
    with pytest.raises(CheckpointError, match=r"k\.h5 isn't a whole HDF5 file of Keras \(MemoryError"):
        bring_in(path)

    def tell_seconds(_):
        raise CheckpointError(f"{resource.getrlimit(resource.RLIMIT_CPU)[0]} seconds")

    monkeypatch.setattr(keras_file, "_descriptions", tell_seconds)
    with pytest.raises(CheckpointError, match=r"k\.h5: 60 seconds"):
        bring_in(path)


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "k.h5", {"rnn": cell_of(draw(4))})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"pip install 'headwater\[keras\]'"):
        bring_in(path)
