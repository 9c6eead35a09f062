"""The portable ONNX graph of a classifier, written from its weights.

It holds to what all runtimes compute alike. The recurrent operators are the native ones without
``sequence_lens``, which some runtimes ignore without a word; a backward direction is a forward operator
between two flips within each row's length; padding is masked where the states are pooled; and every output of
an operator is named.

Inputs: ``tokens`` int64 (B, T), or ``values`` float32 (B, T, C) of standardized numbers, and ``lengths`` int64 (B,), at
least 1; what stands behind a row's length does not matter. Outputs: ``probabilities`` and ``logits``, float32 (B, K).

Shapes: B batch, T time, C channels, H hidden, R directions, F features, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto, helper

from headwater.deployment.onnx_builder import GraphBuilder
from headwater.errors import ExportError

if TYPE_CHECKING:
    from headwater.checkpoint import ModelConfig
    from headwater.model import Pooling
    from headwater.weights import Weights

_BELOW_ALL = -2.0
"""Less than any cell's state, which are all above -1; unlike minus infinity it is safe in every precision."""
_FAR_BELOW = -3e4
"""Where states have no bound: less than any that a model at work has, and a number in half precision too."""


@dataclass(frozen=True)
class Operator:
    """How a cell is written in ONNX.

    Attributes:
        name: The native operator.
        blocks: Our gate for each of the operator's gates.
        outputs: Suffixes of the outputs after the states.
        attributes: Settings of the operator.
    """

    name: str
    blocks: tuple[int, ...]
    outputs: tuple[str, ...] = ("_h",)
    attributes: dict[str, int | list[str]] = field(default_factory=dict)


OPERATORS = {
    "rnn": Operator("RNN", (0,)),
    "rnn_relu": Operator("RNN", (0,), attributes={"activations": ["Relu"]}),
    "lstm": Operator("LSTM", (0, 3, 1, 2), ("_h", "_c")),
    "gru": Operator("GRU", (1, 0, 2), attributes={"linear_before_reset": 1}),
    "gru_reset_before": Operator("GRU", (1, 0, 2), attributes={"linear_before_reset": 0}),
}


@dataclass(frozen=True)
class _Steps:
    """Values that say which steps of which row are valid.

    Attributes:
        lengths: (B,).
        valid: (T, B, 1).
        last: (T, B, 1), true at each row's last valid step.
        reversal: (T, B, 1): the step that takes each step's place when the rows are flipped.
    """

    lengths: str
    valid: str
    last: str
    reversal: str


def build_graph(config: ModelConfig, tensors: Weights) -> bytes:
    """Return the ONNX file of a classifier.

    Args:
        config: The shape of the model.
        tensors: The weights as they are stored: float32, or int8 beside their scales (``NAME.scale``).

    Raises:
        ExportError: The task or the cell can't be written.
    """
    task, encoder = config.task, config.encoder
    if task["name"] != "classification":
        raise ExportError(
            f"a {task['name']} model can't be exported to ONNX, only a classification model: "
            "transfer it to labelled rows first, and export that checkpoint"
        )
    if encoder.cell not in OPERATORS:
        raise ExportError(f"ONNX has no operator for the cell {encoder.cell!r}; it has: {', '.join(OPERATORS)}")
    graph = GraphBuilder(tensors)
    read = "values" if config.channels else "tokens"
    steps = _steps(graph, read)
    x_TBF = _project(graph, config) if config.channels else _embed(graph)
    directions: list[str] = []
    for number in range(encoder.layers):
        below = directions
        directions = _layer(graph, f"encoder.stack.layers.{number}", x_TBF, steps, config)
        if number in config.residual_layers:
            directions = _add_gated(graph, f"encoder.stack.layers.{number}.gate", below, directions)
        if number in config.adapters:
            directions = _adapt(graph, f"encoder.stack.layers.{number}.adapter", directions, encoder.hidden_size)
        x_TBF = _join(graph, directions, axis=2)
    pooled_BF = _pool(graph, directions, steps, task["pooling"], least=_least_state(config, tensors))
    bias = graph.constant("head.linear.bias", graph.tensors["head.linear.bias"])
    graph.node("Gemm", pooled_BF, graph.matrix("head.linear.weight"), bias, name="logits", transB=1)
    graph.node("Softmax", "logits", name="probabilities", axis=1)
    return _finish(graph, config, len(task["labels"]))


def _embed(graph: GraphBuilder) -> str:
    """Return the embedded tokens (T, B, E)."""
    return graph.rows("encoder.embedding.weight", graph.node("Transpose", "tokens", perm=[1, 0]))


def _project(graph: GraphBuilder, config: ModelConfig) -> str:
    """Return the channels (T, B, C) as they are, or projected (T, B, E)."""
    x_TBC = graph.node("Transpose", "values", perm=[1, 0, 2])
    if not config.encoder.projection:
        return x_TBC
    weight_CE = graph.node("Transpose", graph.matrix("encoder.projection.weight"), perm=[1, 0])
    bias = graph.constant("encoder.projection.bias", graph.tensors["encoder.projection.bias"])
    return graph.node("Add", graph.node("MatMul", x_TBC, weight_CE), bias)


def _finish(graph: GraphBuilder, config: ModelConfig, classes: int) -> bytes:
    whole, real = TensorProto.INT64, TensorProto.FLOAT
    if config.channels:
        read = helper.make_tensor_value_info("values", real, ["batch", "time", config.channels])
    else:
        read = helper.make_tensor_value_info("tokens", whole, ["batch", "time"])
    inputs = [read, helper.make_tensor_value_info("lengths", whole, ["batch"])]
    outputs = [helper.make_tensor_value_info(name, real, ["batch", classes]) for name in ("probabilities", "logits")]
    return graph.model(inputs, outputs)


def _steps(graph: GraphBuilder, read: str) -> _Steps:
    time = graph.node("Gather", graph.node("Shape", read), graph.whole(1), axis=0)
    steps_T = graph.node("Range", graph.whole(0), time, graph.whole(1))
    steps_T1 = graph.node("Unsqueeze", steps_T, graph.axes(1))
    last_B = graph.node("Sub", "lengths", graph.whole(1))
    valid_TB = graph.node("Less", steps_T1, "lengths")
    last_TB = graph.node("Equal", steps_T1, last_B)
    reversal_TB = graph.node("Where", valid_TB, graph.node("Sub", last_B, steps_T1), steps_T1)
    valid, last, reversal = (
        graph.node("Unsqueeze", value, graph.axes(2)) for value in (valid_TB, last_TB, reversal_TB)
    )
    return _Steps("lengths", valid, last, reversal)


def _layer(graph: GraphBuilder, name: str, x_TBF: str, steps: _Steps, config: ModelConfig) -> list[str]:
    """Return the states (T, B, H) of each direction."""
    operator, hidden = OPERATORS[config.encoder.cell], config.encoder.hidden_size
    directions = [_run(graph, operator, f"{name}.fwd", x_TBF, hidden)]
    if config.encoder.bidirectional:
        back_TBH = _run(graph, operator, f"{name}.bwd", _flip(graph, x_TBF, steps), hidden)
        directions.append(_flip(graph, back_TBH, steps))
    return directions


def _add_gated(graph: GraphBuilder, gate: str, read: list[str], states: list[str]) -> list[str]:
    """Return what a residual layer passes on, (T, B, H) of each direction."""
    parts = np.split(graph.tensors[gate], len(states))
    gated = [
        graph.node("Mul", state, graph.constant(f"{gate}.{side}", part))
        for side, (state, part) in enumerate(zip(states, parts, strict=True))
    ]
    return [graph.node("Add", *pair) for pair in zip(read, gated, strict=True)]


def _adapt(graph: GraphBuilder, adapter: str, states: list[str], hidden: int) -> list[str]:
    """Return what an adapter passes on, (T, B, H) of each direction."""
    y_TBF = _join(graph, states, axis=2)
    units_TBM = graph.node("Relu", _linear(graph, f"{adapter}.down", y_TBF))
    adapted_TBF = graph.node("Add", y_TBF, _linear(graph, f"{adapter}.up", units_TBM))
    if len(states) == 1:
        return [adapted_TBF]
    forward = graph.node("Split", adapted_TBF, graph.axes(hidden, hidden), others=("_back",), axis=2)
    return [forward, f"{forward}_back"]


def _linear(graph: GraphBuilder, name: str, x_TBF: str) -> str:
    weight = graph.node("Transpose", graph.matrix(f"{name}.weight"), perm=[1, 0])
    bias = graph.constant(f"{name}.bias", graph.tensors[f"{name}.bias"])
    return graph.node("Add", graph.node("MatMul", x_TBF, weight), bias)


def _least_state(config: ModelConfig, tensors: Weights) -> float:
    """Return what is less than any state: a residual layer adds its cells' states, within -1 and 1, times its gates."""
    if config.adapters or (config.residual_layers and config.encoder.cell == "rnn_relu"):
        return _FAR_BELOW
    gates = [tensors[f"encoder.stack.layers.{number}.gate"] for number in config.residual_layers]
    return _BELOW_ALL - sum(float(gate.abs().max()) for gate in gates)


def _run(graph: GraphBuilder, operator: Operator, name: str, x_TBF: str, hidden: int) -> str:
    y_T1BH = graph.node(
        operator.name,
        x_TBF,
        graph.matrix(f"{name}.weight_ih", operator.blocks, stacked=True),
        graph.matrix(f"{name}.weight_hh", operator.blocks, stacked=True),
        graph.bias([f"{name}.bias_ih", f"{name}.bias_hh"], operator.blocks),
        name=f"{name}.states",
        others=operator.outputs,
        hidden_size=hidden,
        **operator.attributes,
    )
    return graph.node("Squeeze", y_T1BH, graph.axes(1))


def _flip(graph: GraphBuilder, x_TBF: str, steps: _Steps) -> str:
    """Return the rows reversed within their lengths."""
    index_TBF = graph.node("Expand", steps.reversal, graph.node("Shape", x_TBF))
    return graph.node("GatherElements", x_TBF, index_TBF, axis=0)


def _pool(graph: GraphBuilder, directions: list[str], steps: _Steps, pooling: Pooling, *, least: float) -> str:
    """Return what `headwater.model.pool` makes of the states, (B, R*H) or (B, 3*R*H)."""
    y_TBF = _join(graph, directions, axis=2)
    parts: list[str] = []
    if pooling in ("last", "concat"):
        final = [_sum(graph, steps.last, directions[0])]
        final += [graph.node("Gather", back, graph.whole(0), axis=0) for back in directions[1:]]
        parts.append(_join(graph, final, axis=1))
    if pooling in ("max", "concat"):
        masked = graph.node("Where", steps.valid, y_TBF, graph.number(least))
        parts.append(graph.node("ReduceMax", masked, axes=[0], keepdims=0))
    if pooling in ("mean", "concat"):
        count_B = graph.node("Cast", steps.lengths, to=TensorProto.FLOAT)
        count_B1 = graph.node("Unsqueeze", count_B, graph.axes(1))
        parts.append(graph.node("Div", _sum(graph, steps.valid, y_TBF), count_B1))
    return _join(graph, parts, axis=1)


def _sum(graph: GraphBuilder, chosen_TB1: str, y_TBF: str) -> str:
    """Return the sum over the chosen steps, (B, F)."""
    masked = graph.node("Where", chosen_TB1, y_TBF, graph.number(0.0))
    return graph.node("ReduceSum", masked, graph.axes(0), keepdims=0)


def _join(graph: GraphBuilder, parts: list[str], *, axis: int) -> str:
    return graph.node("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]
