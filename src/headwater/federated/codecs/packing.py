"""Small whole numbers, several a byte, and sets of places.

Shapes: N numbers or places to choose from, K places chosen, P bytes, J blocks of places.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from headwater.federated.codecs.base import Reader, Writer

_BLOCK = 1 << 16
"""Places that two bytes tell apart."""


def packed_bytes(count: int, bits: int) -> int:
    """Return the bytes that so many numbers are packed into."""
    return -(-count * bits // 8)


def pack(codes_N: Tensor, bits: int) -> Tensor:
    """Return numbers below ``2**bits`` packed into bytes (P,).

    Those that share a byte are N / (8 / bits) places apart, not neighbours: so whole stretches are shifted at once.

    Args:
        codes_N: uint8.
        bits: 1, 2, 4 or 8.
    """
    share = 8 // bits
    if share == 1:
        return codes_N
    rows = F.pad(codes_N, (0, -len(codes_N) % share)).view(share, -1)
    packed_P = rows[0].clone()
    for place in range(1, share):
        packed_P |= rows[place] << (bits * place)
    return packed_P


def unpack(packed_P: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` numbers (N,), uint8, that were packed."""
    if bits == 8:
        return packed_P
    mask = (1 << bits) - 1
    return torch.cat([(packed_P >> (bits * place)) & mask for place in range(8 // bits)])[:count]


def write_places(write: Writer, places_K: Tensor, count: int) -> None:
    """Write a set of places in whichever way is shorter: two bytes for each, or a bit for each that there is.

    Args:
        write: Where.
        places_K: Rising, int64, below `count`.
        count: How many places there are.
    """
    blocks = -(-count // _BLOCK)
    if 2 * len(places_K) + 4 * (blocks > 1) * blocks < packed_bytes(count, 1):
        write.raw("places", (places_K % _BLOCK).to(torch.int16))  # wraps; `read_places` takes the low bits
        if blocks > 1:
            write.raw("counts", (places_K // _BLOCK).bincount(minlength=blocks).to(torch.int32))
    else:
        chosen_N = torch.zeros(count, dtype=torch.uint8)
        chosen_N[places_K] = 1
        write.raw("mask", pack(chosen_N, 1))


def read_places(read: Reader, count: int) -> Tensor:
    """Return the set (K,), rising, that `write_places` has written.

    Raises:
        ValueError: It isn't one.
    """
    if read.has("mask"):
        mask_P = read.raw("mask", torch.uint8, (packed_bytes(count, 1),))
        return unpack(mask_P, 1, count).nonzero().squeeze(1)
    places_K = read.raw("places", torch.int16, None).long() % _BLOCK
    blocks = -(-count // _BLOCK)
    if blocks > 1:
        counts_J = read.raw("counts", torch.int32, (blocks,)).long()
        if bool((counts_J < 0).any()) or int(counts_J.sum()) != len(places_K):
            raise ValueError(f"{read.name!r}: the places of its blocks don't add up")
        places_K += torch.arange(blocks).repeat_interleave(counts_J) * _BLOCK
    if bool((places_K.diff() <= 0).any()) or bool((places_K[-1:] >= count).any()):
        raise ValueError(f"{read.name!r}: its places don't rise below {count}")
    return places_K
