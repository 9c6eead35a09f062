"""A few bits a number after a random rotation, which makes any tensor's numbers look drawn from a normal distribution.

Shapes: B blocks, S numbers of a block, J levels, or the bounds between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.federated.codecs.base import Codec, Reader, Writer
from headwater.federated.codecs.packing import pack, packed_bytes, unpack

_LARGEST = 10
"""Blocks have up to 2^10 numbers: enough to look normal, few enough to fill up little."""
_LEVELS = {
    1: (0.7979,),
    2: (0.4528, 1.510),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733),
}
"""Positive levels with the least squared error for a standard normal number, by bits (Max 1960, table I)."""


@dataclass(frozen=True)
class Rotation(Codec):
    """DRIVE (Vargaftik et al. 2021, arXiv:2105.08339), and EDEN with more bits (2022, arXiv:2108.08842).

    Blocks of a tensor are rotated by drawn signs and a Hadamard matrix; each number becomes one of a few levels.

    Attributes:
        rotation_bits: Of a number.
        error_feedback: Without it a block's scale makes its numbers right on average (over rotations, as nearly as
            Hadamard's are uniform); with it, as near as can be.
    """

    rotation_bits: Literal[1, 2, 4] = 1
    error_feedback: bool = False

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write levels and scales."""
        x_BS = _blocks(value) * _signs(value.numel(), write.draw())
        y_BS = _hadamard(x_BS)
        levels_J = _levels(self.rotation_bits)
        bounds_J = (levels_J[1:] + levels_J[:-1]) / 2
        unit_B = y_BS.square().mean(1).sqrt()
        codes_BS = torch.zeros(y_BS.shape, dtype=torch.uint8)
        for bound in bounds_J.tolist():  # at most 15; a search through them takes longer
            codes_BS += y_BS > bound * unit_B.unsqueeze(1)
        q_BS = _at(levels_J, codes_BS)
        along_B = (y_BS * q_BS).sum(1)
        scale_B = along_B / q_BS.square().sum(1) if self.error_feedback else y_BS.square().sum(1) / along_B
        write.raw("scale", scale_B.where(along_B != 0, 0.0))  # of zeros
        write.raw("levels", pack(codes_BS.view(-1), self.rotation_bits))

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the levels, rotated back."""
        count = prod(shape)
        signs_BS = _signs(count, read.draw())
        packed_P = read.raw("levels", torch.uint8, (packed_bytes(signs_BS.numel(), self.rotation_bits),))
        scale_B = read.raw("scale", torch.float32, (len(signs_BS),))
        codes_BS = unpack(packed_P, self.rotation_bits, signs_BS.numel()).view_as(signs_BS)
        y_BS = _at(_levels(self.rotation_bits), codes_BS) * scale_B.unsqueeze(1)
        return (_hadamard(y_BS) * signs_BS).view(-1)[:count].view(tuple(shape))


def _power(count: int) -> int:
    """Return by which power of two a block is as large as so many numbers need."""
    return min(_LARGEST, (count - 1).bit_length())


def _blocks(value: Tensor) -> Tensor:
    """Return the numbers (B, S), the last block filled up with zeros."""
    size = 1 << _power(value.numel())
    return F.pad(value.reshape(-1), (0, -value.numel() % size)).view(-1, size)


def _signs(count: int, draw: np.random.Generator) -> Tensor:
    """Return 1 or -1 (B, S) for each number of the blocks."""
    size = 1 << _power(count)
    blocks = -(-count // size)
    bits_P = torch.from_numpy(draw.integers(0, 256, packed_bytes(blocks * size, 1), dtype=np.uint8))
    return unpack(bits_P, 1, blocks * size).float().mul_(2).sub_(1).view(blocks, size)


def _levels(bits: int) -> Tensor:
    positive_J = torch.tensor(_LEVELS[bits])
    return torch.cat([-positive_J.flip(0), positive_J])


def _at(levels_J: Tensor, codes_BS: Tensor) -> Tensor:
    """Return the levels that codes stand for: an index would do it in four times the time."""
    return levels_J.index_select(0, codes_BS.view(-1).int()).view_as(codes_BS)


def _hadamard(x_BS: Tensor) -> Tensor:
    """Return each block times Hadamard's orthonormal matrix, its own inverse, as two products with smaller ones."""
    power = x_BS.shape[1].bit_length() - 1
    left, right = _hadamard_matrix(power // 2), _hadamard_matrix(power - power // 2)
    return (left @ x_BS.view(-1, len(left), len(right)) @ right).view_as(x_BS)


@cache
def _hadamard_matrix(power: int) -> Tensor:
    matrix = torch.ones(1, 1)
    for _ in range(power):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)]) * 0.5**0.5
    return matrix
