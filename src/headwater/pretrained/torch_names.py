"""Weights under the names that `torch.nn` gives its recurrent modules.

``PREFIX.weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``, ``..._l1``, ``..._l0_reverse``; without the
layer's number for the cell modules; ``PREFIX_w_ih`` in archives of the package g2p-en; fastai's, see `fastai_names`.
Headwater's cells have the same shapes, gate order and equations, so nothing is converted.

Shapes: D input, H hidden, G gates.
"""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from headwater.errors import CheckpointError
from headwater.pretrained.fastai_names import as_one_module
from headwater.pretrained.numpy_archive import load_numpy_archive
from headwater.pretrained.torch_zip import load_torch_zip
from headwater.pretrained.weight_file import CELL_BY_GATES, RecurrentLayer, Stack, WeightFile, floats
from headwater.weights import Weights

_NAME = re.compile(
    r"(?P<prefix>(?:.*[._/])?)(?P<kind>weight|bias|w|b)_(?P<what>ih|hh|hr)(?:_l(?P<layer>\d{1,3})(?P<back>_reverse)?)?",
    re.DOTALL,
)
_KINDS = {"w": "weight", "b": "bias"}
_Parts = dict[tuple[int, bool], Weights]
"""By layer and whether backward: the tensors without layer and direction in their names."""


def read_safetensors(path: Path) -> WeightFile:
    """Read a safetensors file.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        tensors = safetensors.torch.load(path.read_bytes())
    except Exception as error:  # the library raises several kinds
        raise CheckpointError(f"{path} isn't a whole safetensors file: {error}") from error
    return by_torch_names(tensors)


def read_torch_zip(path: Path) -> WeightFile:
    """Read a file of `torch.save`; its pickle is never run.

    Raises:
        CheckpointError: It is damaged, or holds more than tensors, numbers and text.
    """
    return by_torch_names(load_torch_zip(path))


def read_numpy(path: Path) -> WeightFile:
    """Read an archive of `numpy.savez`.

    Raises:
        CheckpointError: It is damaged, or holds objects.
    """
    return by_torch_names(load_numpy_archive(path))


def by_torch_names(tensors: Weights) -> WeightFile:
    """Find the recurrent stacks among named tensors."""
    tensors = as_one_module(tensors)
    parts: dict[str, _Parts] = defaultdict(lambda: defaultdict(dict))
    names: dict[str, list[str]] = defaultdict(list)
    for name, value in tensors.items():
        if found := _NAME.fullmatch(name):
            prefix = found["prefix"].rstrip("._/")
            kind = _KINDS.get(found["kind"], found["kind"])
            cell = parts[prefix][int(found["layer"] or 0), bool(found["back"])]
            if cell.setdefault(f"{kind}_{found['what']}", value) is not value:
                raise CheckpointError(f"{name!r} has a twin, a tensor whose name means the same: remove one of them")
            names[prefix].append(name)
    stacks = {
        prefix: Stack(names[prefix], functools.partial(_read_stack, prefix, found)) for prefix, found in parts.items()
    }
    return WeightFile(tensors, stacks, "Names, shapes and gate order are those of torch.nn.")


def _read_stack(prefix: str, parts: _Parts) -> Sequence[RecurrentLayer]:
    where = f"the stack {prefix!r}"
    count, both = 1 + max(layer for layer, _ in parts), any(back for _, back in parts)
    wanted = [(layer, back) for layer in range(count) for back in ((False, True) if both else (False,))]
    biased = any(name.startswith("bias") for tensors in parts.values() for name in tensors)
    for place in wanted:
        tensors = parts.get(place, {})
        if "weight_hr" in tensors:
            raise CheckpointError(f"{where} projects its states (weight_hr), which no Headwater cell does")
        for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if biased else ())):
            if name not in tensors:
                suffix = f"_l{place[0]}" + ("_reverse" if place[1] else "")
                raise CheckpointError(f"{where} lacks {name}{suffix}: the file isn't whole, or isn't torch's")
    read = {place: _read_cell(where, parts[place]) for place in wanted}
    layers = [[read[place] for place in wanted if place[0] == layer] for layer in range(count)]
    return [RecurrentLayer(directions, CELL_BY_GATES[_gates(directions[0], where)]) for directions in layers]


def _read_cell(where: str, tensors: Weights) -> Weights:
    made = {name: floats(value, f"{name} of {where}") for name, value in tensors.items()}
    _gates(made, where)
    # Without biases a module adds nothing.
    return {name: torch.zeros(len(made["weight_ih"])) for name in ("bias_ih", "bias_hh")} | made


def _gates(tensors: Weights, where: str) -> int:
    shape = tuple(tensors["weight_hh"].shape)
    gates = shape[0] // shape[1] if len(shape) == 2 and shape[1] and not shape[0] % shape[1] else 0
    if gates not in CELL_BY_GATES or tensors["weight_ih"].ndim != 2:
        raise CheckpointError(
            f"{where} has a weight_hh of {shape} and a weight_ih of {tuple(tensors['weight_ih'].shape)}, where "
            "matrices of H, 3H or 4H rows were expected, the former of H columns"
        )
    return gates
