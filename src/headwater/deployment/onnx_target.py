"""ONNX files, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from headwater.deployment.base import Settings
from headwater.errors import CheckpointError
from headwater.inference import Runner

if TYPE_CHECKING:
    from headwater.checkpoint import ModelConfig
    from headwater.weights import Weights

_ERRORS_ONLY = 3
_UNPACK_AT_LOAD = {"session.disable_quant_qdq": "1"}


class OnnxTarget:
    """The portable ONNX graph; see `headwater.deployment.onnx_graph`."""

    file = "model.onnx"
    runtime = "onnxruntime"

    def build(self, config: ModelConfig, tensors: Weights) -> bytes:
        """Return the ONNX file.

        Raises:
            ExportError: The graph can't express the task or the cell.
        """
        from headwater.deployment.onnx_graph import build_graph

        return build_graph(config, tensors)

    def variants(self, config: ModelConfig) -> Mapping[str, Settings]:
        """Return the plain session and, for int8 weights, the one that unpacks them once, at load."""
        plain: dict[str, Settings] = {"onnxruntime": {}}
        return plain | ({"onnxruntime, unpacked at load": _UNPACK_AT_LOAD} if config.compression else {})

    def open(self, model: bytes, settings: Settings, threads: int) -> Runner:
        """Return what runs the model.

        Raises:
            CheckpointError: onnxruntime can't read the model.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        for key, value in settings.items():
            options.add_session_config_entry(key, value)
        try:
            session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises classes of a private module
            raise CheckpointError(
                f"onnxruntime {onnxruntime.__version__} can't read {self.file}: {error}; "
                "use the version that artifact.json names, or export the checkpoint again"
            ) from error

        name = session.get_inputs()[0].name

        def run(inputs: np.ndarray, lengths_B: np.ndarray) -> np.ndarray:
            feeds = {name: inputs, "lengths": lengths_B}
            probabilities_BK: np.ndarray = session.run(["probabilities"], feeds)[0]
            return probabilities_BK

        return run
