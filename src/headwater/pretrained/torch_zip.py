"""Files of `torch.save` (the zip format, since torch 1.6) as named tensors, without ever running their pickle.

A pickle is a program. Here its instructions are only listed (`pickletools.genops`), and the few that a state dict needs
are carried out on plain values: dicts, lists, tuples, strings, numbers. Of the functions that a pickle may call there
are three, each with a stand-in: `collections.OrderedDict` makes a dict, `torch._utils._rebuild_tensor_v2` a view of
bytes in the archive, `torch._utils._rebuild_parameter` is the tensor it is given. Any other instruction or name is an
error. Formats: `torch/serialization.py`, `torch/_utils.py`.
"""

from __future__ import annotations

import math
import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headwater.errors import CheckpointError
from headwater.weights import Weights

PROGRAM_LIMIT = 2**24
"""Bytes of a pickle at most (16 MiB): the tensors' numbers lie outside of it."""
INSTRUCTIONS_LIMIT = 2**21
"""Instructions of a pickle at most: a tensor takes some twenty."""
NAME_LIMIT = 1000
"""Characters of a key."""
DEPTH_LIMIT, PARTS_LIMIT = 16, 2**20
"""How deep dicts may lie in dicts, and how many values they hold in all: a pickle may name one dict many times."""
SHARING = 4
"""How many times the bytes of the storages all tensors together may have: they are views, and each is copied later.
Tied weights stand under several names."""
DIMENSIONS = 8
"""Sizes of a tensor at most."""

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ORDERED_DICT, _REBUILD, _PARAMETER = object(), object(), object()
_NAMED: dict[str, object] = {
    "collections OrderedDict": _ORDERED_DICT,
    "torch._utils _rebuild_tensor_v2": _REBUILD,
    "torch._utils _rebuild_parameter": _PARAMETER,
    **{f"torch {name}": dtype for name, dtype in _STORAGES.items()},
}
_HOW = "Save weights alone: torch.save(model.state_dict(), FILE), or safetensors"


def load_torch_zip(path: Path) -> Weights:
    """Return the tensors of a file, those of inner dicts with dots between the keys.

    Raises:
        CheckpointError: It is damaged or of the older format, or it holds more than tensors, numbers and text.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path} isn't a whole zip file ({error}): copy it again; what torch before 1.6 wrote must be loaded and "
            "saved by a newer one"
        ) from error
    except Exception as error:  # zipfile raises several kinds on broken headers
        raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}): copy it again") from error


def _read_archive(archive: zipfile.ZipFile, size: int) -> Weights:
    programs = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
    if len(programs) != 1:
        raise CheckpointError(f"it has {len(programs)} members data.pkl, a file of torch.save has one")
    members = _Members(archive, programs[0].removesuffix("data.pkl"), size)
    tensors = named_tensors(run_program(members.read("data.pkl", PROGRAM_LIMIT), members.storage))
    if sum(value.nbytes for value in tensors.values()) > SHARING * size:
        raise CheckpointError(
            f"its tensors together are more than {SHARING} times as large as the file: they share their numbers. {_HOW}"
        )
    return tensors


class _Members:
    """The members of an archive, stored as they are, and not more of them than the file has bytes."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        self._archive, self._folder, self._left = archive, folder, size
        self._found: dict[str, bytearray] = {}
        if folder + "byteorder" in archive.namelist() and self.read("byteorder", size) != b"little":
            raise CheckpointError("it was written on a big-endian machine: load and save it on another one")

    def read(self, name: str, limit: int) -> bytearray:
        """Return the bytes of a member; the same ones, if asked again."""
        if name not in self._found:
            info = self._archive.getinfo(self._folder + name)
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > min(limit, self._left):
                raise CheckpointError(f"the member {name!r} is packed, or has {info.file_size} bytes: too many to read")
            self._left -= info.file_size
            self._found[name] = bytearray(self._archive.read(info))
        return self._found[name]

    def storage(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """Return the numbers of a storage, flat."""
        data = self.read(f"data/{key}", self._left)
        if len(data) != count * dtype.itemsize:
            raise CheckpointError(f"a storage has {len(data)} bytes, where its pickle says {count} of {dtype}")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def run_program(program: bytes | bytearray, storage: Callable[[str, torch.dtype, int], Tensor]) -> Any:
    """Carry out the instructions of a pickle on plain values.

    Args:
        program: The pickle.
        storage: Returns the numbers of a storage by its key, their type and their count.

    Returns:
        What it describes: dicts, lists, tuples, strings, numbers, tensors.

    Raises:
        CheckpointError: It is damaged, or has instructions or names that no state dict needs.
    """
    machine = _Machine(storage)
    try:
        for opcode, argument, _ in pickletools.genops(bytes(program)):
            machine.carry_out(opcode.name, argument)
        (result,) = machine.stack
    except CheckpointError:
        raise
    except Exception as error:  # operands that are missing or of another kind; sizes that torch refuses
        raise CheckpointError(f"its pickle is damaged ({type(error).__name__}): copy the file again") from error
    return result


class _Machine:
    """Pickle's machine, for plain values: each method is one instruction, or several that are alike."""

    def __init__(self, storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        self.stack: list[Any] = []
        self._below: list[list[Any]] = []
        """The stacks under the marks."""
        self._memo: dict[int, Any] = {}
        self._storage = storage
        self._left = INSTRUCTIONS_LIMIT

    def carry_out(self, instruction: str, argument: Any) -> None:
        """Carry out one instruction of the table below, or refuse it."""
        if instruction not in _INSTRUCTIONS:
            raise CheckpointError(f"its pickle has the instruction {instruction}, which is never run. {_HOW}")
        if not self._left:
            raise CheckpointError(f"its pickle has more than {INSTRUCTIONS_LIMIT:,} instructions. {_HOW}")
        self._left -= 1
        _INSTRUCTIONS[instruction](self, argument)

    def skip(self, _: object) -> None:
        """Do nothing: the protocol's number, the end."""

    def push(self, value: object) -> None:
        """Push a literal."""
        self.stack.append(value)

    def mark(self, _: object) -> None:
        """Begin a stack on top of this one."""
        self._below.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self._below.pop()
        return found

    def put(self, place: int) -> None:
        """Remember the top."""
        self._memo[place] = self.stack[-1]

    def get(self, place: int) -> None:
        """Push what was remembered."""
        self.stack.append(self._memo[place])

    def name(self, given: str) -> None:
        """Push what stands for a function or a type."""
        if given not in _NAMED:
            shown = given[:100].replace(" ", ".")
            raise CheckpointError(f"its pickle names {shown!r}, which is never called. {_HOW}")
        self.stack.append(_NAMED[given])

    def tuple_of(self, count: int) -> None:
        """Pack the topmost values."""
        self.stack.append(tuple([self.stack.pop() for _ in range(count)][::-1]))

    def tuple_since_mark(self, _: object) -> None:
        """Pack the values above the mark."""
        values = self._since_mark()
        self.stack.append(tuple(values))

    def append(self, _: object) -> None:
        """Put the top into the list below."""
        self._extend([self.stack.pop()])

    def appends(self, _: object) -> None:
        """Put the values above the mark into the list below."""
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(values)

    def set_item(self, _: object) -> None:
        """Put a key and a value into the dict below."""
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self, _: object) -> None:
        """Put the keys and values above the mark into the dict below."""
        self._update(self._since_mark())

    def _update(self, values: list[Any]) -> None:
        keys = values[::2]
        # A tuple that holds itself many times over would take for ever to hash.
        if type(self.stack[-1]) is not dict or not all(isinstance(key, int | str) for key in keys):
            raise TypeError
        if any(len(str(key)) > NAME_LIMIT for key in keys):
            raise CheckpointError(f"its pickle has a key of more than {NAME_LIMIT} characters")
        self.stack[-1].update(zip(keys, values[1::2], strict=True))

    def build(self, _: object) -> None:
        """Drop the attributes of the dict below: torch hangs the versions of modules there."""
        state = self.stack.pop()
        if type(state) is not dict or type(self.stack[-1]) is not dict:
            raise TypeError

    def reduce(self, _: object) -> None:
        """Call one of the three functions."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if type(arguments) is not tuple:
            raise TypeError
        if function is _REBUILD:
            self.stack.append(_rebuild(*arguments))
        elif function is _PARAMETER and len(arguments) == 3 and type(arguments[0]) is Tensor:
            self.stack.append(arguments[0])  # what follows tells of gradients
        elif function is _ORDERED_DICT and not arguments:
            self.stack.append({})
        else:
            raise TypeError

    def persistent(self, _: object) -> None:
        """Push the numbers of a storage."""
        kind, dtype, key, _location, count = self.stack.pop()
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(count) is not int:
            raise TypeError
        self.stack.append(self._storage(key, dtype, count))


def _rebuild(storage: object, offset: Any, size: object, stride: Any, *_: object) -> Tensor:
    """Return a view of a storage; what follows the stride tells of gradients."""
    if type(storage) is not Tensor or type(size) is not tuple or len(size) > DIMENSIONS:
        raise TypeError
    if not all(type(count) is int for count in size):
        raise TypeError
    # torch checks that the view lies inside; a stride of 0 could still make it larger than the file.
    if math.prod(size) > storage.numel():
        raise CheckpointError("a tensor has more numbers than its storage: save a copy (.clone()) of expanded tensors")
    return storage.as_strided(size, stride, offset)


def named_tensors(value: object) -> Weights:
    """Return the tensors of a dict and of the dicts in it, with dots between the keys.

    Raises:
        CheckpointError: It is no dict, or holds itself, or too much.
    """
    if type(value) is not dict:
        raise CheckpointError(f"it holds no dict of tensors. {_HOW}")
    found: Weights = {}
    _collect(value, (), found, [PARTS_LIMIT])
    return found


def _collect(inner: dict[Any, Any], path: tuple[str, ...], found: Weights, left: list[int]) -> None:
    left[0] -= len(inner)
    if left[0] < 0 or len(path) >= DEPTH_LIMIT:
        raise CheckpointError("its dicts lie too deep in each other, or hold too much")
    for key, value in inner.items():
        if type(value) is Tensor:
            found[".".join((*path, str(key)))] = value
        elif type(value) is dict:
            _collect(value, (*path, str(key)), found, left)


_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "STOP"), _Machine.skip),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "TUPLE": _Machine.tuple_since_mark,
    "MARK": _Machine.mark,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Machine.get),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
