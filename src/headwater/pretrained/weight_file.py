"""What a file of other people's weights holds, in one form for all formats, and the choice of what to take.

Shapes: V vocabulary, E embedding, D input, H hidden, G gates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from headwater.cells import CELLS, cell_class
from headwater.errors import CheckpointError, ConfigError, did_you_mean
from headwater.pretrained.silent_units import equally_wide
from headwater.registry import lookup
from headwater.weights import Weights

FORMATS = {
    ".safetensors": "headwater.pretrained.torch_names:read_safetensors",
    ".pt": "headwater.pretrained.torch_names:read_torch_zip",
    ".pth": "headwater.pretrained.torch_names:read_torch_zip",
    ".npz": "headwater.pretrained.torch_names:read_numpy",
    ".h5": "headwater.pretrained.keras_file:read_keras",
    ".hdf5": "headwater.pretrained.keras_file:read_keras",
    ".onnx": "headwater.pretrained.onnx_file:read_onnx",
}
"""By a file's suffix: reads a path into a `WeightFile`."""
CELL_BY_GATES = {1: "", 3: "gru", 4: "lstm"}
"""What a layer is by its gates; one gate is a simple RNN, and the sizes don't tell tanh from ReLU."""
MOST_LAYERS = 64
"""Of an encoder; a file may have one layer's numbers stand for many."""
BARE = "."
"""What a stack without a name is called by its users."""
SHOWN = 6
"""Names that a sentence lists before it only counts."""

_EMBEDDING = re.compile(r".*(emb|embed|embeddings?)(\.weight|:0)?", re.DOTALL)


@dataclass(frozen=True)
class RecurrentLayer:
    """One recurrent layer, with its gates in torch's order.

    Attributes:
        directions: The forward cell's tensors and, if bidirectional, the backward one's: `weight_ih` (GH, D),
            `weight_hh` (GH, H), `bias_ih` and `bias_hh` (GH,).
        cell: Its name in the table of cells; empty where the file doesn't tell.
        doubts: Why it may compute something else than a cell of that name, a clause each.
    """

    directions: Sequence[Weights]
    cell: str
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stack:
    """Recurrent layers on top of each other.

    Attributes:
        names: The tensors that they are made of.
        read: Returns the layers, the first one first; raises `CheckpointError` where they aren't whole.
    """

    names: Sequence[str]
    read: Callable[[], Sequence[RecurrentLayer]]


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    Attributes:
        tensors: All tensors, as they are stored.
        stacks: By name; for torch's names the part before ``weight_ih_l0``.
        convention: How its weights become ours, a sentence for people.
        looked_up: Tensors whose rows the file itself says are looked up, whatever they are called.
    """

    tensors: Weights
    stacks: dict[str, Stack]
    convention: str
    looked_up: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choice:
    """What is taken from a file.

    Attributes:
        cell: The name in the table of cells.
        layers: The first one first; all of one cell, one size, and one or two directions.
        widths: Of the layers in the file; narrow ones have got silent units.
        embedding_VE: The embedding, float32.
        stacks: The names of the stacks that the layers were read from.
        embedding: The name of the embedding.
    """

    cell: str
    layers: Sequence[RecurrentLayer]
    widths: Sequence[int]
    embedding_VE: Tensor
    stacks: Sequence[str]
    embedding: str

    @property
    def doubts(self) -> list[str]:
        """Why the cells may compute something else than those of the file, a clause each."""
        return list(dict.fromkeys(doubt for layer in self.layers for doubt in layer.doubts))


def read_weight_file(path: Path) -> WeightFile:
    """Read a file by its suffix.

    Raises:
        CheckpointError: It is missing, damaged, or holds what isn't read.
        ConfigError: No reader knows the suffix.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: give a file of weights ({', '.join(FORMATS)})")
    try:
        read = lookup("headwater.weight_formats", FORMATS, path.suffix.lower())
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    found: WeightFile = read(path)
    if not found.stacks:
        raise CheckpointError(
            f"{path} holds no recurrent layers under the names of torch.nn, Keras or ONNX; its tensors are "
            f"{listed(found.tensors) or 'none'}"
        )
    return found


def choose(file: WeightFile, *, prefix: str, embedding: str, cell: str) -> Choice:
    """Choose a stack and its embedding.

    Args:
        file: What there is.
        prefix: The name of the stack, or of several from the first to the last with commas between; empty where
            there is only one.
        embedding: The name of the embedding; empty to find it by name and size.
        cell: The cell's name; empty where the file tells.

    Raises:
        CheckpointError: The layers don't make a stack, or there is no embedding for them.
        ConfigError: What is to be taken isn't said, or isn't there.
    """
    names = _stack_names(file, prefix)
    layers = [layer for name in names for layer in file.stacks[name].read()]
    made = _common_cell(layers, cell)
    name = _embedding_name(file, embedding, _check_sizes(layers, made))
    widths = list(map(_width, layers))
    if len(set(widths)) > 1:
        if made not in CELLS:
            raise CheckpointError(f"the layers have {widths} units, where an encoder of {made} has one number of them")
        wide = equally_wide([layer.directions for layer in layers])
        layers = [replace(layer, directions=directions) for layer, directions in zip(layers, wide, strict=True)]
    return Choice(made, layers, widths, floats(file.tensors[name], name), names, name)


def describe(file: WeightFile, choice: Choice, decoder: Iterable[str] = ()) -> list[str]:
    """Return what was matched, what was left, and whether the cells compute the same, a sentence each.

    Args:
        file: What there is.
        choice: What is taken.
        decoder: The tensors of the decoder, if that is taken too.
    """
    both = "bidirectional " if len(choice.layers[0].directions) == 2 else ""
    hidden = choice.layers[0].directions[0]["weight_hh"].shape[1]
    rows, width = choice.embedding_VE.shape
    used = {choice.embedding, *decoder, *(name for stack in choice.stacks for name in file.stacks[stack].names)}
    left = [name for name in file.tensors if name not in used]
    if choice.doubts:
        verdict = f"The cells were not shown to compute the same: {'; '.join(choice.doubts)}."
    else:
        condition = "" if choice.layers[0].cell else f", if they are {choice.cell} as --cell says"
        verdict = f"The cells compute the same{condition}."
    layers = f"{len(choice.layers)} {both}{choice.cell} x {hidden} units in {listed(choice.stacks)}"
    silent = "; ".join(f"layer {n} has {width}" for n, width in enumerate(choice.widths) if width < hidden)
    filled = [f"In the file {silent}: the others are silent here, of zero weights."]
    joined = "What stands between the embedding and the layers isn't read: they were taken to follow each other."
    return [
        f"Matched: {layers}, and the embedding {choice.embedding!r} ({rows:,} x {width}).",
        f"Left in the file: {listed(left) or 'nothing'}.",
        f"{file.convention} {verdict} {joined}",
        *(filled if silent else ()),
    ]


def floats(value: Tensor, name: str) -> Tensor:
    """Return a copy of a tensor in float32; those of a module may be parts of one buffer, which no checkpoint has.

    Raises:
        CheckpointError: It holds other things than finite numbers with a fraction.
    """
    if not value.is_floating_point():
        raise CheckpointError(f"{name!r} is of {value.dtype}, where floating-point weights are read")
    made = value.float()
    if not bool(made.isfinite().all()):
        raise CheckpointError(f"{name!r} holds numbers that aren't finite in float32")
    return made.clone(memory_format=torch.contiguous_format)


def listed(names: Iterable[str]) -> str:
    """Return the names in quotes, the first few of many."""
    every = [name if len(name) <= 80 else f"{name[:77]}..." for name in names]
    rest = f" and {len(every) - SHOWN} more" if len(every) > SHOWN else ""
    return ", ".join(map(repr, every[:SHOWN])) + rest


def _stack_names(file: WeightFile, prefix: str) -> list[str]:
    known = {name or BARE: name for name in file.stacks}
    if not prefix:
        if len(known) > 1:
            raise ConfigError(
                f"the file holds {len(known)} recurrent stacks, {listed(known)}: name the one to take with --prefix, "
                "or several with commas between, the first layer first"
            )
        return list(file.stacks)
    given = [prefix] if prefix in known else prefix.split(",")  # a layer's name may hold a comma
    return [_stack_name(name, known) for name in given]


def _stack_name(given: str, known: dict[str, str]) -> str:
    bare = given.strip()
    for name in (given, bare, bare.rstrip("._/")):
        if name in known:
            return known[name]
    raise ConfigError(f"prefix = {bare!r}: no such stack{did_you_mean(bare, known)}; there are {listed(known)}")


def _common_cell(layers: Sequence[RecurrentLayer], given: str) -> str:
    """Return the cell of all the layers: what the file says, else what the user says."""
    said = list(dict.fromkeys(layer.cell for layer in layers))
    gates = {_gates(layer) for layer in layers}
    if len(said) > 1 or len(gates) > 1:
        raise CheckpointError(
            f"the layers mix cells ({', '.join(name or 'simple RNN' for name in said)}), an encoder has one: name a "
            "part of them with --prefix"
        )
    if given and said[0] and given != said[0]:
        raise ConfigError(f"cell = {given!r}: the file says that the layers are {said[0]!r}; leave --cell out")
    if not given and not said[0]:
        options = {1: "rnn (tanh) or rnn_relu", 3: "gru or gru_reset_before"}.get(min(gates), "its name")
        raise ConfigError(
            f"the file doesn't tell which cell its layers with {min(gates)} gates are: add --cell {options}"
        )
    cell = given or said[0]
    if cell_class(cell).gates not in gates:
        raise ConfigError(
            f"cell = {cell!r} has {cell_class(cell).gates} gates, the layers of the file have {min(gates)}"
        )
    return cell


def _width(layer: RecurrentLayer) -> int:
    return int(layer.directions[0]["weight_hh"].shape[1])


def _gates(layer: RecurrentLayer) -> int:
    rows, hidden = layer.directions[0]["weight_hh"].shape
    return int(rows // hidden)


def _check_sizes(layers: Sequence[RecurrentLayer], cell: str) -> int:
    """Refuse layers that don't follow each other in one encoder; return the first one's input size."""
    if len(layers) > MOST_LAYERS:
        raise CheckpointError(
            f"there are {len(layers)} layers, an encoder takes {MOST_LAYERS}: name fewer with --prefix"
        )
    count = len(layers[0].directions)
    first = width = int(layers[0].directions[0]["weight_ih"].shape[1])
    for number, layer in enumerate(layers):
        hidden = _width(layer)
        rows = cell_class(cell).gates * hidden
        if len(layer.directions) != count:
            raise CheckpointError(f"layer {number} has {len(layer.directions)} directions, the first has {count}")
        wanted = {"weight_ih": (rows, width), "weight_hh": (rows, hidden), "bias_ih": (rows,), "bias_hh": (rows,)}
        for tensors in layer.directions:
            for name, shape in wanted.items():
                if tuple(tensors[name].shape) != shape:
                    raise CheckpointError(
                        f"layer {number} has a {name} of {tuple(tensors[name].shape)}, where {cell} x {hidden} units "
                        f"that read {width} numbers have {shape}: each layer reads the one below"
                    )
        width = count * hidden
    return first


def _embedding_name(file: WeightFile, given: str, size: int) -> str:
    recurrent = {name for stack in file.stacks.values() for name in stack.names}
    matrices = [
        name for name, value in file.tensors.items() if value.ndim == 2 and len(value) and name not in recurrent
    ]
    if given:
        if given not in matrices:
            raise ConfigError(f"embedding = {given!r}: no matrix has this name{did_you_mean(given, matrices)}")
        if file.tensors[given].shape[1] != size:
            raise CheckpointError(
                f"the embedding {given!r} has {file.tensors[given].shape[1]} columns, the first layer reads {size}"
            )
        return given
    named = [name for name in matrices if name in file.looked_up or _EMBEDDING.fullmatch(name)]
    fitting = [name for name in named if file.tensors[name].shape[1] == size]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"{listed(fitting)} could be the embedding: name the one to take with --embedding")
    others = [name for name in matrices if file.tensors[name].shape[1] == size]
    raise CheckpointError(
        f"the first layer reads {size} numbers, but no matrix of {size} columns is called an embedding "
        f"(named so: {listed(named) or 'none'}): an encoder starts with one; name it with --embedding (of that width: "
        f"{listed(others) or 'none'})"
    )
