"""Matrix products, memory, layers in training and steps of a stream: ours, torch's and ONNX Runtime's.

Shapes: N rows of a matrix, B batch, T time, E inputs, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from headwater import native
from headwater.benchmark.measure import OURS, Machine, Paths, Precision, Row, race
from headwater.benchmark.shapes import STEP, Shape, step_bytes, step_flops, training_bytes, training_flops
from headwater.cells import cell_class
from headwater.cells.base import Cell
from headwater.cells.stack import RecurrentStack
from headwater.cells.stream import Stream
from headwater.deployment.onnx_builder import GraphBuilder
from headwater.deployment.onnx_graph import OPERATORS

TORCH = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
"""The cells that `torch.nn` has too."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def products(machine: Machine, budget: float, size: int = 1024) -> list[Row]:
    """Measure the peak: the product of two square matrices."""
    a_NN, b_NN = torch.randn(size, size), torch.randn(size, size)
    paths: dict[tuple[str, Precision], Callable[[], object]] = {
        ("torch.mm", precision): partial(torch.mm, a_NN.to(DTYPES[precision]), b_NN.to(DTYPES[precision]))
        for precision in machine.precisions()
    }
    if machine.kernels != "off":
        paths[OURS, "float32"] = partial(native.product, a_NN, b_NN)
    return race(
        paths, budget=budget, part="product", case=f"{size} x {size}", flops=2.0 * size**3, bytes=12.0 * size**2
    )


def memory(budget: float, count: int = 2**24) -> list[Row]:
    """Measure the memory's bandwidth: c = a + b over arrays that no cache holds."""
    a_N, b_N, c_N = (torch.ones(count) for _ in range(3))
    paths: Paths = {("torch.add", "float32"): partial(torch.add, a_N, b_N, out=c_N)}
    return race(paths, budget=budget, part="memory", case=f"{count} floats", flops=1.0 * count, bytes=12.0 * count)


def layer(cell: str, shape: Shape, machine: Machine, budget: float) -> list[Row]:
    """Measure a layer forward and backward."""
    gates = cell_class(cell).gates
    work = {"flops": training_flops(gates, shape), "bytes": training_bytes(gates, shape)}
    paths = training_paths(cell, shape, machine.precisions())
    return race(paths, budget=budget, part="layer", case=shape.name, cell=cell, **work)


def training_paths(cell: str, shape: Shape, precisions: tuple[Precision, ...]) -> Paths:
    """Return a layer's training step as we, as an expert (padded) and as most people (packed, float32) take it.

    All have the same weights, inputs and gradients of the outputs, which are 0 on padding; each call returns the
    gradients of the inputs and of the four weights.
    """
    torch.manual_seed(0)
    lengths_B = shape.lengths()
    ours = RecurrentStack(cell, shape.inputs, shape.hidden)
    theirs = twin(cell, shape, ours)
    x_BTE = torch.randn(shape.batch, shape.time, shape.inputs, requires_grad=True)
    valid_BT1 = (torch.arange(shape.time) < lengths_B.unsqueeze(1)).unsqueeze(2)
    dy_BTH = torch.randn(shape.batch, shape.time, shape.hidden) * valid_BT1
    dys = {dtype: dy_BTH.to(dtype) for dtype in DTYPES.values()}

    def packed(x_BTE: Tensor) -> Tensor:
        x_N = pack_padded_sequence(x_BTE, lengths_B, batch_first=True, enforce_sorted=False)
        y_BTH: Tensor = pad_packed_sequence(theirs(x_N)[0], batch_first=True)[0]
        return y_BTH

    def train(forward: Callable[[Tensor], Tensor], weights: list[Tensor], precision: Precision) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            y_BTH = forward(x_BTE)
        return torch.autograd.grad(y_BTH, [x_BTE, *weights], dys[y_BTH.dtype])

    paths: dict[tuple[str, Precision], Callable[[], object]] = {}
    for precision in precisions:
        paths[OURS, precision] = partial(
            train, lambda x_BTE: ours(x_BTE, lengths_B)[0], [*ours.parameters()], precision
        )
        paths["torch padded", precision] = partial(
            train, lambda x_BTE: theirs(x_BTE)[0], [*theirs.parameters()], precision
        )
    paths["torch packed", "float32"] = partial(train, packed, [*theirs.parameters()], "float32")
    return paths


def twin(cell: str, shape: Shape, ours: nn.Module) -> nn.RNNBase:
    """Return torch's layer with our weights."""
    theirs: nn.RNNBase = TORCH[cell](shape.inputs, shape.hidden, batch_first=True)
    theirs.load_state_dict({f"{key.rpartition('.')[2]}_l0": value for key, value in ours.state_dict().items()})
    return theirs


def streaming(cell: str, budget: float) -> list[Row]:
    """Measure the step that a stream takes, one row at a time."""
    gates = cell_class(cell).gates
    work = {"flops": step_flops(gates, STEP), "bytes": step_bytes(gates, STEP)}
    with torch.inference_mode():
        return race(step_paths(cell), budget=budget, part="step", case=STEP.name, cell=cell, **work)


def step_paths(name: str) -> Paths:
    """Return one step of our `Stream`, of torch's layer and of ONNX Runtime; each goes on from its own last state."""
    torch.manual_seed(0)
    stack = RecurrentStack(name, STEP.inputs, STEP.hidden).eval()
    theirs = twin(name, STEP, stack).eval()
    cell = stack.get_submodule("layers.0.fwd")
    assert isinstance(cell, Cell)  # noqa: S101 - what the stack has put there
    stream, session = Stream(stack), onnx_step(name, cell)
    x_E, state_torch = torch.randn(STEP.inputs), None
    x_11E, state = x_E.view(1, 1, -1), cell.init_state(1)
    feeds = {"x": x_11E.numpy()} | {key: value.unsqueeze(0).numpy() for key, value in state.items()}
    outputs = ["y", *(f"y_{key}" for key in state)]

    def torchs() -> Tensor:
        nonlocal state_torch
        y_11H: Tensor
        y_11H, state_torch = theirs(x_11E, state_torch)
        return y_11H[0, 0]

    def onnx() -> Tensor:
        y, *after = session.run(outputs, feeds)
        feeds.update(zip(state, after, strict=True))
        return torch.from_numpy(y)[0, 0]

    return {
        (OURS, "float32"): partial(stream.step, x_E),
        ("torch", "float32"): torchs,
        ("ONNX Runtime", "float32"): onnx,
    }


def onnx_step(name: str, cell: Cell) -> onnxruntime.InferenceSession:
    """Return a session of the cell's native operator: from x (1, 1, E) and the state to y, y_h and, for LSTM, y_c."""
    graph = GraphBuilder({key: value.detach() for key, value in cell.state_dict().items()})
    operator = OPERATORS[name]
    graph.node(
        operator.name,
        "x",
        graph.matrix("weight_ih", operator.blocks, stacked=True),
        graph.matrix("weight_hh", operator.blocks, stacked=True),
        graph.bias(["bias_ih", "bias_hh"], operator.blocks),
        "",  # the lengths: all full
        *cell.state_names,
        name="y",
        others=operator.outputs,
        hidden_size=cell.hidden_size,
        **operator.attributes,
    )

    def real(value: str, *sizes: int) -> object:
        return helper.make_tensor_value_info(value, TensorProto.FLOAT, sizes)

    states = [real(key, 1, 1, cell.hidden_size) for key in cell.state_names]
    after = [real(f"y{suffix}", 1, 1, cell.hidden_size) for suffix in operator.outputs]
    content = graph.model([real("x", 1, 1, cell.input_size), *states], [real("y", 1, 1, 1, cell.hidden_size), *after])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
