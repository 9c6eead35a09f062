"""Weights that Keras saved as HDF5 (`model.save("x.h5")`, `save_weights`): recurrent layers in torch's layout.

=================  ==============================================================================================
kernel             (D, GH), turned; gates i, f, c, o of an LSTM (torch's order), z, r, h of a GRU
recurrent kernel   (H, GH), turned
bias               (GH,), or for a GRU (2, 3H), of the inputs and of the states: it resets after the product then
CuDNN layers       a bias of 2GH numbers tells: each gate of the kernel is a matrix (H, D) in the memory of one
                   of (D, H), each gate of the recurrent kernel isn't turned
=================  ==============================================================================================

Sources: Keras 2 `hdf5_format.py` (`_convert_rnn_weights`) and `recurrent_v2.py`.

Shapes: D input, H hidden, G gates.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import platform
import resource
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headwater.errors import CheckpointError, MissingDependency
from headwater.files import EXPANSION
from headwater.pretrained.weight_file import CELL_BY_GATES, RecurrentLayer, Stack, WeightFile, floats, listed
from headwater.weights import Weights
from headwater.workers import Workers

Array = NDArray[np.float32]

_PARTS = {"kernel": "kernel", "recurrent_kernel": "recurrent", "bias": "bias"}
_CLASSES = {"LSTM", "GRU", "SimpleRNN", "CuDNNLSTM", "CuDNNGRU"}
_ELMAN = {"tanh": "rnn", "relu": "rnn_relu"}


@dataclass(frozen=True)
class _Direction:
    """What the description of a model says of one direction of a recurrent layer."""

    kind: str
    activation: str
    recurrent_activation: str
    reset_after: bool | None
    backwards: bool


@dataclass(frozen=True)
class _Description:
    """What the description of a model says of a recurrent layer: the forward direction first."""

    directions: Sequence[_Direction]
    merge: str = "concat"


def read_keras(path: Path) -> WeightFile:
    """Read a file of Keras; each recurrent layer is a stack of its own, under the layer's name.

    Raises:
        CheckpointError: It is damaged, links to other files, or isn't laid out as Keras 2 does.
        MissingDependency: h5py isn't installed.
    """
    if importlib.util.find_spec("h5py") is None:
        raise MissingDependency("h5py", extra="keras", purpose="reading HDF5 files of Keras")
    try:
        # The HDF5 library crashes on some damaged files: then only this process of its own ends.
        with Workers(1, _read_file) as workers:
            ((_, (descriptions, layers)),) = workers.answers([path])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # h5py raises several kinds
        raise CheckpointError(f"{path} isn't a whole HDF5 file of Keras ({type(error).__name__}: {error})") from error
    tensors = {name: torch.from_numpy(value) for found in layers.values() for name, value in found.items()}
    stacks = {}
    for layer, found in layers.items():
        if "recurrent" in map(_part, found):
            own = {name: tensors[name] for name in found}
            stacks[layer] = Stack(tuple(found), functools.partial(_read_layer, layer, own, descriptions.get(layer)))
    convention = "Keras's kernels were turned, and a GRU's gates put from the order z, r, h into r, z, n."
    return WeightFile(tensors, stacks, convention)


def _read_file(path: Path) -> tuple[dict[str, _Description], dict[str, dict[str, Array]]]:
    import h5py

    _limit_this_process(path.stat().st_size)
    with h5py.File(path, "r") as file:
        descriptions = _descriptions(file.attrs.get("model_config"))
        whole = file.get("model_weights", getlink=True) is not None  # a file of weights alone has no such group
        return descriptions, _read_layers(_inner(file, "model_weights") if whole else file, path)


def _limit_this_process(size: int) -> None:
    """Let a damaged file of `size` bytes cost neither time nor memory without end."""
    _limit(resource.RLIMIT_CPU, 60 + size // 2**20)  # seconds: unpacking a MiB takes far less than one
    if platform.system() == "Linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        # The numbers lie here several times: unpacked, as float32, and packed again to be sent.
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + 8 * EXPANSION * size + 2**30)


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _read_layers(root: Any, path: Path) -> dict[str, dict[str, Array]]:
    """Return the arrays of each layer, in the file's order, with the layer's name before theirs."""
    if "layer_names" not in root.attrs:
        raise CheckpointError("it has no layer_names, which Keras's model.save('x.h5') writes: save it so")
    datasets: dict[str, dict[str, Any]] = {}
    for layer in _texts(root.attrs["layer_names"]):
        group = _inner(root, layer)
        for name in _texts(group.attrs["weight_names"]):
            dataset = _inner(group, name)
            if dataset.is_virtual or dataset.external:
                raise CheckpointError(f"the numbers of {name[:80]!r} lie in another file")
            if dataset.dtype.kind == "f":
                full = name if name.startswith(f"{layer}/") else f"{layer}/{name}"
                datasets.setdefault(layer, {})[full] = dataset
    size = sum(_unpacked(dataset) for found in datasets.values() for dataset in found.values())
    if size > EXPANSION * path.stat().st_size + 2**20:
        raise CheckpointError(f"it unpacks to more than {EXPANSION} times its size: refused")
    return {layer: {name: _array(dataset) for name, dataset in found.items()} for layer, found in datasets.items()}


def _unpacked(dataset: Any) -> int:
    """Return how many bytes are unpacked to read some: a whole chunk, which may be larger than its dataset."""
    return max(int(dataset.nbytes), math.prod(dataset.chunks or ()) * int(dataset.dtype.itemsize))


def _texts(values: Any) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _inner(group: Any, path: str) -> Any:
    """Return what lies in a group, never following a link to another place or file."""
    import h5py

    for part in path.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise CheckpointError(f"{part[:80]!r} is missing, or links elsewhere")
        group = group[part]
    return group


def _array(dataset: Any) -> Array:
    return np.array(dataset[()], dtype=np.float32)


def _descriptions(text: Any) -> dict[str, _Description]:
    """Return what the model's description says of its layers, by name; nothing where the file holds weights alone."""
    if text is None:
        return {}
    config = json.loads(text)["config"]
    layers = config["layers"] if isinstance(config, dict) else config  # the oldest write the list itself
    return {layer["config"]["name"]: _described(layer) for layer in layers if "name" in layer["config"]}


def _described(layer: dict[str, Any]) -> _Description:
    if layer["class_name"] != "Bidirectional":
        return _Description([_direction(layer)])
    config = layer["config"]
    forward = _direction(config["layer"])
    other = config.get("backward_layer")  # without one Keras mirrors the forward layer
    backward = _direction(other) if other else replace(forward, backwards=not forward.backwards)
    return _Description([forward, backward], str(config.get("merge_mode")))


def _direction(layer: dict[str, Any]) -> _Direction:
    settings = layer["config"]
    after = settings.get("reset_after")
    return _Direction(
        kind=str(layer["class_name"]),
        activation=str(settings.get("activation", "tanh")),
        recurrent_activation=str(settings.get("recurrent_activation", "sigmoid")),
        reset_after=after if isinstance(after, bool) else None,
        backwards=bool(settings.get("go_backwards")),
    )


def _part(name: str) -> str:
    """Return which of a cell's tensors a name is: `kernel`, `recurrent`, `bias`, or nothing."""
    return _PARTS.get(name.rpartition("/")[2].removesuffix(":0"), "")


def _read_layer(layer: str, tensors: Weights, told: _Description | None) -> Sequence[RecurrentLayer]:
    cells: dict[str, Weights] = defaultdict(dict)
    for name, value in tensors.items():
        cells[name.rpartition("/")[0]][_part(name)] = floats(value, name)
    places = list(cells)
    if len(places) > 2 or (len(places) == 2 and "backward" not in places[1]):
        raise CheckpointError(f"the layer {layer!r} holds {len(places)} cells ({listed(places)}), not one layer")
    for place, cell in cells.items():
        if not {"kernel", "recurrent"} <= cell.keys() <= {"kernel", "recurrent", "bias"} or "" in cell:
            raise CheckpointError(
                f"{place!r} has {', '.join(cell)}, where a kernel, a recurrent kernel and a bias are read"
            )
    directions = [_convert(place, cell) for place, cell in cells.items()]
    sides = told.directions if told else [None] * len(places)
    names = [_cell_name(cell, side) for cell, side in zip(cells.values(), sides, strict=False)]
    doubts = _doubts(layer, list(cells.values()), told)
    if len(set(names)) > 1:
        doubts.append(f"{layer!r} has the cells {listed(names)} in its directions, an encoder one cell")
    return [RecurrentLayer(directions, names[0], tuple(doubts))]


def _gates(place: str, cell: Weights) -> int:
    kernel, recurrent = tuple(cell["kernel"].shape), tuple(cell["recurrent"].shape)
    gates = recurrent[1] // recurrent[0] if len(recurrent) == 2 and recurrent[0] else 0
    if gates not in CELL_BY_GATES or recurrent[1] % recurrent[0] or len(kernel) != 2 or kernel[1] != recurrent[1]:
        raise CheckpointError(
            f"{place!r} has a kernel of {kernel} and a recurrent kernel of {recurrent}, where (D, GH) and (H, GH) with "
            "1, 3 or 4 gates were expected"
        )
    return gates


def _is_cudnn(cell: Weights) -> bool:
    bias = cell.get("bias")
    hidden, columns = cell["recurrent"].shape
    return bias is not None and tuple(bias.shape) == (2 * columns,) and columns > hidden


def _cell_name(cell: Weights, told: _Direction | None) -> str:
    """Return the name in the table of cells; empty where the file doesn't tell."""
    gates = cell["recurrent"].shape[1] // cell["recurrent"].shape[0]
    if gates == 1:
        return _ELMAN.get(told.activation, "rnn") if told else ""
    if gates == 4 or _is_cudnn(cell):
        return CELL_BY_GATES[gates]
    after = cell["bias"].ndim == 2 if "bias" in cell else told and told.reset_after
    return "" if after is None else "gru" if after else "gru_reset_before"


def _doubts(layer: str, cells: Sequence[Weights], told: _Description | None) -> list[str]:
    """Return why a layer may compute something else than a Headwater cell, a clause each."""
    simple = [cell["recurrent"].shape[0] == cell["recurrent"].shape[1] for cell in cells]
    if told is None:
        known = all(map(_is_cudnn, cells)) or all(simple)  # what a simple RNN is, the user must say
        return [] if known else [f"the file doesn't tell the activations of {layer!r} (older Keras took hard_sigmoid)"]
    doubts = []
    if len(told.directions) != len(cells):
        doubts.append(f"{layer!r} has {len(cells)} cells, where its description has {len(told.directions)}")
    if told.merge != "concat":
        doubts.append(f"{layer!r} merges its directions by {told.merge!r}, an encoder by 'concat'")
    for number, side in enumerate(told.directions):
        name = f"the backward direction of {layer!r}" if number else repr(layer)
        doubts += _doubts_of_direction(name, side, simple=all(simple), backwards=number == 1)
    return doubts


def _doubts_of_direction(name: str, told: _Direction, *, simple: bool, backwards: bool) -> list[str]:
    doubts = [] if told.kind in _CLASSES else [f"{name} is of the class {told.kind!r}"]
    if told.activation != "tanh" and not (simple and told.activation in _ELMAN):
        doubts.append(f"{name} has the activation {told.activation!r}, the cell 'tanh'")
    if not simple and told.recurrent_activation != "sigmoid":
        doubts.append(f"{name} has the recurrent activation {told.recurrent_activation!r}, the cell 'sigmoid'")
    if told.backwards != backwards:
        doubts.append(f"{name} reads {'backwards' if told.backwards else 'forwards'}")
    return doubts


def _convert(place: str, cell: Weights) -> Weights:
    """Return a cell's weights in torch's layout and order."""
    gates, cudnn = _gates(place, cell), _is_cudnn(cell)
    kernel_DGH, recurrent_HGH = cell["kernel"], cell["recurrent"]
    inputs, hidden = kernel_DGH.shape[0], recurrent_HGH.shape[0]
    weight_ih = [block.reshape(hidden, inputs) if cudnn else block.T for block in torch.split(kernel_DGH, hidden, 1)]
    weight_hh = [block if cudnn else block.T for block in torch.split(recurrent_HGH, hidden, 1)]
    bias_ih, bias_hh = _biases(place, cell, gates * hidden)
    return {
        "weight_ih": _ordered(weight_ih),
        "weight_hh": _ordered(weight_hh),
        "bias_ih": _ordered(torch.split(bias_ih, hidden)),
        "bias_hh": _ordered(torch.split(bias_hh, hidden)),
    }


def _biases(place: str, cell: Weights, rows: int) -> tuple[Tensor, Tensor]:
    bias = cell.get("bias", torch.zeros(rows))
    if tuple(bias.shape) == (2, rows) or _is_cudnn(cell):
        return bias.flatten()[:rows], bias.flatten()[rows:]
    if tuple(bias.shape) != (rows,):
        raise CheckpointError(f"{place!r} has a bias of {tuple(bias.shape)}, its kernel has {rows} columns")
    return bias, torch.zeros(rows)


def _ordered(gates: Sequence[Tensor]) -> Tensor:
    """Join the gates in torch's order: a GRU's z, r, h become r, z, n."""
    return torch.cat([gates[1], gates[0], gates[2]] if len(gates) == 3 else list(gates)).contiguous()
