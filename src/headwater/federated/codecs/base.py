"""What a codec is, and how a stack of them writes named tensors and reads them back.

The parts that a codec makes of the tensor ``NAME`` are called ``NAME#part``. Shapes are not sent: whoever reads knows
what was written. Random choices follow from the key of a message and the tensor's name, so both ends draw the same.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from headwater.weights import Weights

MARK = "#"
"""Stands between a tensor's name and the part that a codec has made of it; no parameter's name has it."""


class Codec(ABC):
    """A way to write a float32 tensor. Tensors without numbers never reach it."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Return whether tensors of this shape are encoded; others go on to the next codec as they are."""
        del shape
        return True

    @abstractmethod
    def encode(self, value: Tensor, write: Writer) -> None:
        """Write the parts of a tensor. What isn't finite must not come out finite."""

    @abstractmethod
    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the tensor of this shape from its parts.

        Raises:
            ValueError: They aren't what `encode` writes.
        """


@dataclass(frozen=True)
class Writer:
    """Where a codec puts the parts of one tensor."""

    name: str
    _tensors: Weights
    _rest: Sequence[Codec]
    _key: str

    def raw(self, part: str, value: Tensor) -> None:
        """Write a part as it is."""
        self._tensors[f"{self.name}{MARK}{part}"] = value

    def numbers(self, part: str, value: Tensor) -> None:
        """Write a float32 part, which the stack's next codecs encode."""
        _write(self._tensors, f"{self.name}{MARK}{part}", value, self._rest, self._key)

    def draw(self) -> np.random.Generator:
        """Return the source of the tensor's random choices, the same for writer and reader."""
        return _draw(self._key, self.name)


@dataclass(frozen=True)
class Reader:
    """Where a codec takes the parts of one tensor from; they may be anything that a peer has sent."""

    name: str
    _tensors: Weights
    _rest: Sequence[Codec]
    _key: str

    def has(self, part: str) -> bool:
        """Return whether there is such a part."""
        return f"{self.name}{MARK}{part}" in self._tensors

    def raw(self, part: str, dtype: torch.dtype, shape: Sequence[int] | None) -> Tensor:
        """Return a part as it was written; without a shape it is a list of any length.

        Raises:
            ValueError: There is none of this type and shape.
        """
        return _taken(self._tensors, f"{self.name}{MARK}{part}", dtype, shape)

    def numbers(self, part: str, shape: Sequence[int]) -> Tensor:
        """Return a float32 part, decoded by the stack's next codecs.

        Raises:
            ValueError: It isn't there, or not what they write.
        """
        return _read(self._tensors, f"{self.name}{MARK}{part}", torch.float32, shape, self._rest, self._key)

    def draw(self) -> np.random.Generator:
        """Return the source of the tensor's random choices, the same for writer and reader."""
        return _draw(self._key, self.name)


def encode(weights: Mapping[str, Tensor], stack: Sequence[Codec], key: str) -> Weights:
    """Return what is sent in place of some tensors; those that aren't float32 stay as they are.

    Args:
        weights: By name.
        stack: The codecs, first to last.
        key: Of the message: random choices follow from it.
    """
    tensors: Weights = {}
    for name, value in weights.items():
        _write(tensors, name, value, stack, key)
    return tensors


def decode(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor], stack: Sequence[Codec], key: str) -> Weights:
    """Return the tensors that `encode` was given, as near as its codecs come.

    Args:
        tensors: What was sent, which may be anything.
        like: Tensors of the names, types and shapes that were encoded.
        stack: As for `encode`.
        key: As for `encode`.

    Raises:
        ValueError: It isn't what `encode` makes of such tensors.
    """
    left = dict(tensors)
    made = {name: _read(left, name, value.dtype, value.shape, stack, key) for name, value in like.items()}
    if left:
        raise ValueError(f"{min(left)!r} is part of no tensor that was asked for")
    return made


def _write(tensors: Weights, name: str, value: Tensor, stack: Sequence[Codec], key: str) -> None:
    place = _first(value.dtype, value.shape, stack)
    if place is None:
        tensors[name] = value
    else:
        stack[place].encode(value, Writer(name, tensors, stack[place + 1 :], key))


def _read(
    tensors: Weights, name: str, dtype: torch.dtype, shape: Sequence[int], stack: Sequence[Codec], key: str
) -> Tensor:
    place = _first(dtype, shape, stack)
    if place is None:
        return _taken(tensors, name, dtype, shape)
    return stack[place].decode(shape, Reader(name, tensors, stack[place + 1 :], key))


def _first(dtype: torch.dtype, shape: Sequence[int], stack: Sequence[Codec]) -> int | None:
    """Return the place of the first codec that encodes such a tensor."""
    if dtype != torch.float32 or 0 in shape:
        return None
    return next((place for place, codec in enumerate(stack) if codec.fits(shape)), None)


def _taken(tensors: Weights, name: str, dtype: torch.dtype, shape: Sequence[int] | None) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name!r} is missing")
    value = tensors.pop(name)
    wanted = "in a list" if shape is None else f"of {tuple(shape)}"
    if value.dtype != dtype or (value.ndim != 1 if shape is None else value.shape != torch.Size(shape)):
        raise ValueError(f"{name!r} is {value.dtype} of shape {tuple(value.shape)}, where {dtype} {wanted} is wanted")
    return value


def _draw(key: str, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(zlib.crc32(f"{key}/{name}".encode())))
