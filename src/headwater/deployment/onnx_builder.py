"""Writing ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper

from headwater.checkpoint import SCALE_SUFFIX
from headwater.weights import Weights

_OPSET, _IR = 17, 8
"""Old enough for the runtimes in use; int8 rows with a scale each (DequantizeLinear by axis) need 13."""


class GraphBuilder:
    """Collects nodes and constants; values are known by their names.

    Args:
        tensors: The weights as they are stored: float32, or int8 beside their scales (``NAME.scale``).
    """

    def __init__(self, tensors: Weights) -> None:
        self.tensors = {name: value.detach().cpu().numpy() for name, value in tensors.items()}
        self._nodes: list[Any] = []
        self._constants: dict[str, np.ndarray] = {}

    def node(self, operator: str, *inputs: str, name: str = "", others: Sequence[str] = (), **attributes: Any) -> str:
        """Add a node and return its first output; `others` are suffixes of further outputs' names."""
        name = name or f"{operator}_{len(self._nodes)}"
        outputs = [name, *(name + suffix for suffix in others)]
        self._nodes.append(helper.make_node(operator, list(inputs), outputs, name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        """Add a constant once and return its name."""
        self._constants.setdefault(name, value)
        return name

    def whole(self, value: int) -> str:
        """Return a constant int64 number of rank 0: some runtimes take no other as the end of a range."""
        return self.constant(f"whole_{value}", np.array(value, dtype=np.int64))

    def axes(self, *values: int) -> str:
        """Return a constant int64 vector."""
        return self.constant("axes_" + "_".join(map(str, values)), np.array(values, dtype=np.int64))

    def number(self, value: float) -> str:
        """Return a constant float32 number of rank 0."""
        return self.constant(f"number_{value:g}", np.array(value, dtype=np.float32))

    def matrix(self, name: str, blocks: Sequence[int] = (0,), *, stacked: bool = False) -> str:
        """Return a weight matrix in float32: as it is, or unpacked from int8 by the runtime.

        Args:
            name: A parameter.
            blocks: The new order of its equal blocks of rows.
            stacked: Whether to put an axis of size 1 in front, as recurrent operators want it.
        """
        value = self._arranged(name, blocks)
        stored = self.constant(name, value[None] if stacked else value)
        if name + SCALE_SUFFIX not in self.tensors:
            return stored
        scale = self.constant(name + SCALE_SUFFIX, self._arranged(name + SCALE_SUFFIX, blocks).reshape(-1))
        return self.node("DequantizeLinear", stored, scale, name=name + ".float", axis=int(stacked))

    def bias(self, names: Sequence[str], blocks: Sequence[int]) -> str:
        """Return the biases behind each other in one row, each with its blocks in a new order."""
        row = np.concatenate([self._arranged(name, blocks) for name in names])
        return self.constant("+".join(names), row[None])

    def rows(self, name: str, index: str) -> str:
        """Return the rows of a matrix that an index names; of an int8 matrix only these are unpacked."""
        found = self.node("Gather", self.constant(name, self.tensors[name]), index, axis=0)
        if name + SCALE_SUFFIX not in self.tensors:
            return found
        scales = self.constant(name + SCALE_SUFFIX, self.tensors[name + SCALE_SUFFIX])
        scale = self.node("Gather", scales, index, axis=0)
        return self.node("Mul", self.node("Cast", found, to=TensorProto.FLOAT), scale)

    def model(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> bytes:
        """Return the checked file."""
        constants = [numpy_helper.from_array(value, name) for name, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, "headwater", list(inputs), list(outputs), constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR, producer_name="headwater"
        )
        checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def _arranged(self, name: str, blocks: Sequence[int]) -> np.ndarray:
        parts = np.split(self.tensors[name], len(blocks))
        return np.concatenate([parts[block] for block in blocks])
