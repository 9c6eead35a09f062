"""ONNX's recurrent operators compute here what ONNX Runtime computes.

Shapes: N directions, D input, H hidden, G gates.
"""

import numpy as np
import onnxruntime
import pytest
import torch
from foreign_weights import TEXTS, WORDS, bring_in, numbers, states_of
from onnx import TensorProto, helper, numpy_helper

from headwater.errors import CheckpointError, ConfigError
from headwater.records import StageRecord

D, H = 6, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def draw(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32) * 0.5


def model(*, operator="LSTM", layers=1, both=False, bias=True, change=None, **attributes):
    """Return a graph that looks up tokens (T, 1) and runs recurrent layers; the states are (T, 1, N*H)."""
    count, rows = 1 + both, GATES[operator] * H
    weights, nodes = {"table": draw(len(WORDS), D)}, [helper.make_node("Gather", ["table", "tokens"], ["x_0"])]
    attributes |= {"hidden_size": H} | ({"direction": "bidirectional"} if both else {})
    for number in range(layers):
        width = count * H if number else D
        weights |= {f"W_{number}": draw(count, rows, width, seed=number)}
        weights |= {f"R_{number}": draw(count, rows, H, seed=number)}
        weights |= {f"B_{number}": draw(count, 2 * rows, seed=number)} if bias else {}
        inputs = [f"x_{number}", f"W_{number}", f"R_{number}", f"B_{number}" if bias else ""]
        nodes.append(helper.make_node(operator, inputs, [f"y_{number}"], name=f"layer_{number}", **attributes))
        nodes.append(helper.make_node("Transpose", [f"y_{number}"], [f"t_{number}"], perm=[0, 2, 1, 3]))
        nodes.append(helper.make_node("Reshape", [f"t_{number}", "shape"], [f"x_{number + 1}"]))
    weights["shape"] = np.array([0, 0, -1], dtype=np.int64)
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["T", 1])],
        [helper.make_tensor_value_info(f"x_{layers}", TensorProto.FLOAT, ["T", 1, count * H])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    if change:
        change(graph)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(folder, **given):
    path = folder / "model.onnx"
    path.write_bytes(model(**given).SerializeToString())
    return path


def assert_equal(checkpoint, path):
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    for text in TEXTS:
        (expected,) = session.run(None, {"tokens": np.array(numbers(text))[:, None]})
        torch.testing.assert_close(states_of(checkpoint, text), torch.from_numpy(expected[:, 0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [{}, {"both": True}, {"bias": False}])
@pytest.mark.parametrize(
    ("given", "cell"),
    [
        ({"operator": "LSTM"}, "lstm"),
        ({"operator": "GRU", "linear_before_reset": 1}, "gru"),
        ({"operator": "GRU", "linear_before_reset": 0}, "gru_reset_before"),
        ({"operator": "GRU"}, "gru_reset_before"),
        ({"operator": "RNN"}, "rnn"),
        ({"operator": "RNN", "activations": ["Relu"]}, "rnn_relu"),
    ],
)
def test_an_operator_computes_what_onnx_runtime_computes(given, cell, shape, tmp_path):
    if shape.get("both") and "activations" in given:
        given = given | {"activations": ["Relu", "Relu"]}
    path = save(tmp_path, **given, **shape)
    checkpoint = bring_in(path)
    assert checkpoint.config.encoder.cell == cell
    assert_equal(checkpoint, path)
    assert StageRecord.load(tmp_path / "model").notes[0].endswith("the embedding 'table' (12 x 6).")


def test_layers_are_named_from_the_first_to_the_last(tmp_path):
    path = save(tmp_path, operator="GRU", layers=2, both=True)
    with pytest.raises(ConfigError, match="2 recurrent stacks, 'layer_0', 'layer_1'"):
        bring_in(path)
    assert_equal(bring_in(path, prefix="layer_0,layer_1"), path)


def add_input(place, name, value=None):
    def change(graph):
        node = next(node for node in graph.node if node.op_type == "LSTM")
        node.input.extend([""] * (place + 1 - len(node.input)))
        node.input[place] = name
        if value is not None:
            graph.initializer.append(numpy_helper.from_array(value, name))

    return change


def start_from(graph, value):
    """Let both initial states come from a constant, by the operators that torch's exporter puts there."""
    add_input(5, "state")(graph)
    add_input(6, "state")(graph)
    constants = {"sizes": (2, 1, H), "starts": (0,), "ends": (1,)}
    graph.initializer.extend(numpy_helper.from_array(np.array(v, dtype=np.int64), k) for k, v in constants.items())
    one = numpy_helper.from_array(np.array([value], dtype=np.float32))
    nodes = [
        helper.make_node("ConstantOfShape", ["sizes"], ["states"], **({"value": one} if value is not None else {})),
        helper.make_node("Slice", ["states", "starts", "ends"], ["state"]),
    ]
    kept = [*nodes, *graph.node]
    graph.ClearField("node")
    graph.node.extend(kept)


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: start_from(graph, None),
        lambda graph: start_from(graph, 0.0),
        add_input(5, "h", np.zeros((1, 1, H), dtype=np.float32)),
    ],
)
def test_a_start_from_zeros_is_known(change, tmp_path):
    path = save(tmp_path, change=change)
    assert_equal(bring_in(path), path)


def name_twice(graph):
    for node in graph.node:
        node.name = "same"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (name_twice, "several nodes have the name 'same'"),
        (lambda graph: graph.initializer.append(numpy_helper.from_array(draw(2), "W_0")), "several tensors .* 'W_0'"),
    ],
)
def test_a_name_that_stands_twice_is_refused(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        bring_in(save(tmp_path, layers=2, change=change))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"activations": ["HardSigmoid", "Tanh", "Tanh"]}, "has the activations"),
        ({"direction": "reverse"}, "reads backwards"),
        ({"clip": 3.0}, "clips what its activations read at 3"),
        ({"input_forget": 1}, "couples its input and forget gates"),
        ({"change": add_input(7, "P", draw(1, 3 * H))}, "has peepholes"),
        ({"change": add_input(5, "h", draw(1, 1, H))}, "starts from a state that isn't known to be zero"),
        ({"change": add_input(6, "c", draw(1, 1, H))}, "starts from a state that isn't known to be zero"),
        ({"change": add_input(5, "given")}, "starts from a state that isn't known to be zero"),
        ({"change": lambda graph: start_from(graph, 1.0)}, "starts from a state that isn't known to be zero"),
        ({"operator": "GRU", "activations": ["Sigmoid", "Relu"]}, "has the activations"),
        ({"operator": "RNN", "activations": ["Sigmoid"]}, "has the activations"),
    ],
)
def test_what_computes_something_else_is_taken_only_on_demand(given, message, tmp_path):
    path = save(tmp_path, **given)
    with pytest.raises(CheckpointError, match=rf"can't be shown to be imported exactly: .*{message}"):
        bring_in(path)
    bring_in(path, inexact=True)
    assert message in " ".join(StageRecord.load(tmp_path / "model").notes)


def replaced(name, value):
    def change(graph):
        place = [tensor.name for tensor in graph.initializer].index(name)
        graph.initializer[place].CopyFrom(numpy_helper.from_array(value, name))

    return change


def outside(graph):
    tensor = graph.initializer[1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/hostname")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (outside, "lie in another file"),
        (lambda graph: graph.initializer.pop(1), "'W_0', which is no floating-point constant"),
        (add_input(3, "elsewhere"), "'elsewhere', which is no floating-point constant"),
        (replaced("W_0", draw(1, 19, D)), r"weights of \(1, 19, 6\)"),
        (replaced("R_0", draw(20, H)), r"weights of .*\(20, 5\)"),
        (replaced("R_0", draw(3, 20, H)), r"weights of .*\(3, 20, 5\)"),
        (replaced("R_0", draw(0, 0, 0)), r"weights of .*\(0, 0, 0\)"),
        (replaced("B_0", draw(1, 20)), r"weights of .*\(1, 20\)"),
        (replaced("R_0", np.zeros((1, 20, H), dtype=np.int8)), "'R_0', which is no floating-point constant"),
        (replaced("B_0", np.full((1, 40), np.inf, dtype=np.float32)), "aren't finite"),
        (lambda graph: graph.initializer[1].dims.append(7), "isn't a whole ONNX file"),
        (lambda graph: graph.ClearField("node"), "holds no recurrent layers"),
    ],
)
def test_a_graph_that_makes_no_layer_is_refused(change, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        bring_in(save(tmp_path, change=change))
    assert not (tmp_path / "model").exists()


def test_a_file_cut_short_is_refused(tmp_path):
    path = save(tmp_path)
    data = path.read_bytes()
    for length in (0, 1, 40, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match=r"model\.onnx (isn't a whole ONNX file|holds no recurrent layers)"):
            bring_in(path)


@pytest.mark.parametrize("name", [b"table", b"layer_0", b"W_0"])
def test_a_name_that_is_no_text_is_refused(name, tmp_path):
    path = save(tmp_path)
    path.write_bytes(path.read_bytes().replace(name, b"\xff" + name[1:]))
    with pytest.raises(CheckpointError, match=r"model\.onnx isn't a whole ONNX file"):
        bring_in(path)
