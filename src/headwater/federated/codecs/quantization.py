"""Numbers as small multiples of a scale, and signs alone.

Shapes: N numbers, B buckets, S numbers of a bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.federated.codecs.base import Codec, Reader, Writer
from headwater.federated.codecs.packing import pack, packed_bytes, unpack

_BUCKET = 512
"""Numbers that share a scale, as in the QSGD paper."""


@dataclass(frozen=True)
class Int8(Codec):
    """QSGD with 127 levels (Alistarh et al. 2017, arXiv:1610.02132): each bucket's largest magnitude is the top one.

    Numbers are rounded up or down at random, so that each is right on average and off by less than a level.

    Attributes:
        error_feedback: Round to the nearest level instead, off by at most half a level: what the next update makes up
            for needs no average, and the noise would not die out.
    """

    bits: ClassVar[int] = 8
    error_feedback: bool = False

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write levels and scales."""
        levels = (1 << (self.bits - 1)) - 1
        x_BS = buckets(value)
        scale_B = x_BS.abs().amax(1) / levels
        # Of zeros only; a scale that is no number must stay one. A tiny one is rounded itself: hence the clamp.
        x_BS = x_BS / scale_B.where(scale_B != 0, 1.0).unsqueeze(1)
        x_BS = x_BS.round_() if self.error_feedback else _rounded_at_random(x_BS, write.draw())
        levels_N = x_BS.clamp_(-levels, levels).add_(levels).view(-1)[: value.numel()]
        write.raw("scale", scale_B)
        write.raw("levels", pack(levels_N.to(torch.uint8), self.bits))

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return levels times scales."""
        count = prod(shape)
        scale_B = read.raw("scale", torch.float32, (-(-count // _BUCKET),))
        packed_P = read.raw("levels", torch.uint8, (packed_bytes(count, self.bits),))
        levels_N = unpack(packed_P, self.bits, count).float().sub_((1 << (self.bits - 1)) - 1)
        return scaled(levels_N, scale_B, shape)


class Int4(Int8):
    """QSGD with 7 levels, two numbers a byte."""

    bits = 4


class Ternary(Int8):
    """One level: minus the scale, zero or the scale, four numbers a byte (TernGrad; Wen et al. 2017, arXiv:1705.07878).

    The paper has a scale a layer, here it is a bucket's as in QSGD: less noise for a few bytes.
    """

    bits = 2


class Sign(Codec):
    """Signs times a bucket's mean magnitude, eight numbers a byte (signSGD; Bernstein et al. 2018, arXiv:1802.04434).

    With the scale of Karimireddy et al. 2019 (arXiv:1901.09847), who show that it needs error feedback.
    """

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write signs and scales."""
        x_BS = buckets(value)
        held_B = torch.full((len(x_BS),), float(x_BS.shape[1]))
        held_B[-1] -= x_BS.numel() - value.numel()
        write.raw("scale", x_BS.abs().sum(1) / held_B)
        write.raw("signs", pack((value >= 0).view(-1).to(torch.uint8), 1))

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return signs times scales."""
        count = prod(shape)
        scale_B = read.raw("scale", torch.float32, (-(-count // _BUCKET),))
        packed_P = read.raw("signs", torch.uint8, (packed_bytes(count, 1),))
        return scaled(unpack(packed_P, 1, count).float().mul_(2).sub_(1), scale_B, shape)


def buckets(value: Tensor) -> Tensor:
    """Return a tensor's numbers (B, S), the last bucket filled up with zeros; a small tensor is one bucket."""
    size = min(_BUCKET, value.numel())
    missing = -value.numel() % size
    return (F.pad(value.reshape(-1), (0, missing)) if missing else value).reshape(-1, size)


def scaled(x_N: Tensor, scale_B: Tensor, shape: Sequence[int]) -> Tensor:
    """Return numbers times the scales of their buckets, changed in place."""
    return buckets(x_N).mul_(scale_B.unsqueeze(1)).view(-1)[: len(x_N)].view(tuple(shape))


def _rounded_at_random(x_BS: Tensor, draw: np.random.Generator) -> Tensor:
    """Return the numbers, changed in place, rounded up with the chance that makes them right on average."""
    # 16 bits are as fine as float32 is at the top level of int8, and drawn in half the time; half a bit centres them.
    chance_N = torch.from_numpy(draw.integers(-(1 << 15), 1 << 15, x_BS.numel(), dtype=np.int16))
    return x_BS.add_(chance_N.view_as(x_BS), alpha=2.0**-16).add_(0.5 + 2.0**-17).floor_()
