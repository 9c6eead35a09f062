"""What a model's parameters read, measured on rows.

Shapes: B batch, T time, N valid steps or rows, F features that a layer or head reads, R directions, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headwater.axes import EMBEDDING, Axes
from headwater.cells.adapter import Adapter
from headwater.cells.stack import Layer, reversal_index
from headwater.data.batches import Batch
from headwater.model import SequenceModel
from headwater.tasks.classification import PooledLinear


@dataclass(frozen=True)
class LayerPass:
    """One layer at work.

    Attributes:
        states_BTF: The states of its cells, (B, T, R*H).
        summed_BTF: What its adapter reads, if it has one: the states, or what a residual layer makes of them.
        passed_BTF: What the next one reads.
    """

    states_BTF: Tensor
    summed_BTF: Tensor
    passed_BTF: Tensor


@torch.inference_mode()
def run_layers(model: SequenceModel, batch: Batch) -> tuple[Tensor, list[LayerPass]]:
    """Return what the first layer reads (B, T, E), and each layer at work."""
    model.eval()
    stack = model.encoder.stack
    x_BTE = x_BTF = model.encoder.embed(batch.inputs)
    reversal_BT = reversal_index(batch.lengths_B, x_BTF) if stack.bidirectional else None
    passes = []
    for layer in stack.layers:
        assert isinstance(layer, Layer)  # noqa: S101 - what the stack has put there
        y_BTF, _ = layer(x_BTF, batch.lengths_B, reversal_BT, {})
        summed_BTF, x_BTF = layer.summed(x_BTF, y_BTF), layer.joined(x_BTF, y_BTF)
        passes.append(LayerPass(y_BTF, summed_BTF, x_BTF))
    return x_BTE, passes


def what_is_read(model: SequenceModel, axes: Axes, batch: Batch) -> dict[str, Tensor]:
    """Return what each weight reads, (N, F), by the weight's name; of the decoder's mirrored rows, the embedding's."""
    x_BTE, passes = run_layers(model, batch)
    below = [x_BTE, *(layer.passed_BTF for layer in passes)]
    read = {}
    for number, layer in enumerate(passes):
        sides = layer.states_BTF.chunk(2 if model.encoder.stack.bidirectional else 1, 2)
        for side, states_BTH in zip(("fwd", "bwd"), sides, strict=False):
            name = f"encoder.stack.layers.{number}.{side}"
            read[f"{name}.weight_ih"] = valid_steps(batch, below[number])
            read[f"{name}.weight_hh"] = valid_steps(batch, states_BTH)
        adapter = model.encoder.stack.layers[number].adapter
        if isinstance(adapter, Adapter):
            name = f"encoder.stack.layers.{number}.adapter"
            read[f"{name}.down.weight"] = summed_NF = valid_steps(batch, layer.summed_BTF)
            read[f"{name}.up.weight"] = adapter.bottleneck(summed_NF)
    head_NF = head_reads(model, batch, below[-1])
    for name, of_name in axes.items():
        if name.startswith("head.") and of_name[-1].reads and of_name[-1].spaces != (EMBEDDING,):
            read[name] = head_NF
    return read | {EMBEDDING: valid_steps(batch, x_BTE)}


def head_reads(model: SequenceModel, batch: Batch, y_BTF: Tensor) -> Tensor:
    """Return what the head's weights read of states, (N, F): pooled rows, or all valid steps."""
    if isinstance(model.head, PooledLinear):
        return model.head.pooled(y_BTF, batch.lengths_B)
    return valid_steps(batch, y_BTF)


def valid_steps(batch: Batch, y_BTF: Tensor) -> Tensor:
    """Return the features of all valid steps, (N, F)."""
    steps_T = torch.arange(y_BTF.shape[1])
    return y_BTF[steps_T < batch.lengths_B.unsqueeze(1)]
