"""ONNX graphs: their recurrent operators' weights in torch's layout; the graph itself is never run.

=======  ==========================================================================================
W, R, B  (N, GH, D), (N, GH, H), (N, 2GH) for N directions; B holds the inputs' biases, then the states'
LSTM     gates i, o, f, c
GRU      gates z, r, h; `linear_before_reset` = 1 resets after the product, 0 (the default) before it
RNN      one activation
=======  ==========================================================================================

Source: the ONNX operators' specification, https://onnx.ai/onnx/operators/.

Shapes: N directions, D input, H hidden, G gates.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headwater.errors import CheckpointError
from headwater.pretrained.weight_file import RecurrentLayer, Stack, WeightFile, floats, listed
from headwater.weights import Weights

_ORDERS = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""The operator's gate for each of torch's gates."""
_ACTIVATIONS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
_STATES, _PEEPHOLES = slice(5, 7), 7
"""The places of the initial states and of an LSTM's peephole weights among the inputs."""
_KEEP_ZEROS = {"Cast", "Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
"""Operators that make zeros of zeros: exporters put them before the initial states."""


@dataclass(frozen=True)
class _Node:
    """What a recurrent operator's node says, checked; `inputs` are names, empty where one is left out."""

    kind: str
    name: str
    inputs: Sequence[str]
    activations: Sequence[str]
    direction: str
    reset_after: bool
    clip: float
    coupled: bool
    from_zeros: bool


def read_onnx(path: Path) -> WeightFile:
    """Read a graph; each recurrent operator is a stack of its own, under the node's name.

    Raises:
        CheckpointError: It is damaged, or its numbers lie in other files.
    """
    import onnx

    try:
        graph = onnx.load_model_from_string(path.read_bytes()).graph
        floating = _floating()
        tensors = {_text(value.name): _tensor(value) for value in graph.initializer if value.data_type in floating}
        zeros = _zeros(graph, tensors)
        nodes = [_node(number, node, zeros) for number, node in enumerate(graph.node) if _is_recurrent(node)]
        looked_up = {_text(node.input[0]) for node in graph.node if node.op_type == "Gather" and node.input}
        _refuse_twins("tensors", [value.name for value in graph.initializer])
        _refuse_twins("nodes", [node.name for node in nodes])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # protobuf and numpy raise several kinds
        raise CheckpointError(f"{path} isn't a whole ONNX file ({type(error).__name__}: {error})") from error
    stacks = {
        node.name: Stack(
            [name for name in node.inputs[1:4] if name in tensors], functools.partial(_read_node, node, tensors)
        )
        for node in nodes
    }
    convention = "ONNX's gates were put into torch's order, and its two biases apart."
    return WeightFile(tensors, stacks, convention, frozenset(looked_up & tensors.keys()))


def _is_recurrent(node: Any) -> bool:
    return node.op_type in _ORDERS and node.domain in ("", "ai.onnx")


def _refuse_twins(what: str, names: Sequence[str]) -> None:
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise CheckpointError(f"several {what} have the name {listed(twice)}: give each its own")


def _zeros(graph: Any, tensors: Weights) -> set[str]:
    """Return the names of the values that are known to be zeros alone."""
    zeros = {name for name, value in tensors.items() if not bool(value.any())}
    for node in graph.node:  # each stands behind those that it reads
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op_type in ("Constant", "ConstantOfShape"):
            values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            floating = all(value.data_type in _floating() for value in values)
            known = floating and not any(bool(_tensor(value).any()) for value in values)
            known = known and (bool(values) or node.op_type == "ConstantOfShape")  # whose default is 0
        else:
            known = node.op_type in _KEEP_ZEROS and bool(node.input) and _text(node.input[0]) in zeros
        if known:
            zeros.update(map(_text, node.output))
    return zeros


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes are what protobuf gives for broken UTF-8


def _node(number: int, node: Any, zeros: Collection[str]) -> _Node:
    from onnx import helper

    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inputs = [*map(_text, node.input), *[""] * (_PEEPHOLES + 1 - len(node.input))]
    return _Node(
        kind=node.op_type,
        name=_text(node.name) or f"{node.op_type}_{number}",
        inputs=inputs,
        activations=[_text(value).lower() for value in settings.get("activations", ())],
        direction=_text(settings.get("direction", "forward")),
        reset_after=bool(settings.get("linear_before_reset")),
        clip=float(settings.get("clip", 0.0)),
        coupled=bool(settings.get("input_forget")),
        from_zeros=all(name in zeros for name in inputs[_STATES] if name),
    )


def _floating() -> set[int]:
    from onnx import TensorProto

    return {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def _tensor(value: Any) -> Tensor:
    from onnx import TensorProto, numpy_helper

    if value.data_location == TensorProto.EXTERNAL:
        raise CheckpointError(f"the numbers of {value.name[:80]!r} lie in another file: save the model in one")
    return torch.from_numpy(numpy_helper.to_array(value).astype(np.float32))


def _read_node(node: _Node, tensors: Weights) -> Sequence[RecurrentLayer]:
    weight_NGD, recurrent_NGH = _constant(node, 1, tensors), _constant(node, 2, tensors)
    bias_N2G = _constant(node, 3, tensors) if node.inputs[3] else None
    order = _ORDERS[node.kind]
    count, rows, hidden = (*recurrent_NGH.shape, 0, 0, 0)[:3]
    sizes = [tuple(value.shape) for value in (weight_NGD, recurrent_NGH, bias_N2G) if value is not None]
    fits = recurrent_NGH.ndim == weight_NGD.ndim == 3 and weight_NGD.shape[:2] == (count, rows) and hidden
    if not fits or rows != len(order) * hidden or count not in (1, 2) or sizes[2:] not in ([], [(count, 2 * rows)]):
        raise CheckpointError(
            f"the node {node.name!r} has weights of {', '.join(map(str, sizes))}, where (N, GH, D), (N, GH, H) and "
            f"(N, 2GH) with {len(order)} gates were expected"
        )
    bias_N2G = torch.zeros(count, 2 * rows) if bias_N2G is None else bias_N2G
    directions = [
        {
            "weight_ih": _ordered(weight_NGD[side], order),
            "weight_hh": _ordered(recurrent_NGH[side], order),
            "bias_ih": _ordered(bias_N2G[side, :rows], order),
            "bias_hh": _ordered(bias_N2G[side, rows:], order),
        }
        for side in range(count)
    ]
    usual = list(_ACTIVATIONS[node.kind]) * count
    relu = node.kind == "RNN" and node.activations == ["relu"] * count
    doubts = _doubts(node)
    if node.activations and node.activations != usual and not relu:
        doubts.append(f"{node.name!r} has the activations {listed(node.activations)}, the cell {listed(usual)}")
    return [RecurrentLayer(directions, _cell(node, relu=relu), tuple(doubts))]


def _cell(node: _Node, *, relu: bool) -> str:
    if node.kind == "GRU":
        return "gru" if node.reset_after else "gru_reset_before"
    return "lstm" if node.kind == "LSTM" else "rnn_relu" if relu else "rnn"


def _constant(node: _Node, place: int, tensors: Weights) -> Tensor:
    name = node.inputs[place]
    if name not in tensors:
        raise CheckpointError(
            f"the node {node.name!r} takes its weights from {name[:80]!r}, which is no floating-point constant of the "
            "graph: save the model with its constants folded, and before it is quantized"
        )
    return floats(tensors[name], name)


def _ordered(gates: Tensor, order: Sequence[int]) -> Tensor:
    blocks = gates.chunk(len(order))
    return torch.cat([blocks[gate] for gate in order])


def _doubts(node: _Node) -> list[str]:
    doubts = []
    if node.direction == "reverse":
        doubts.append(f"{node.name!r} reads backwards")
    if node.clip:
        doubts.append(f"{node.name!r} clips what its activations read at {node.clip:g}")
    if node.coupled:
        doubts.append(f"{node.name!r} couples its input and forget gates")
    if node.inputs[_PEEPHOLES]:
        doubts.append(f"{node.name!r} has peepholes")
    if not node.from_zeros:
        doubts.append(f"{node.name!r} starts from a state that isn't known to be zero, as the cell's is")
    return doubts
