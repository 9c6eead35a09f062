"""Two bytes a number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from headwater.federated.codecs.base import Codec, Reader, Writer


class Float16(Codec):
    """IEEE half precision: off by at most 2^-11 of a number, or by 2^-25; above 65504 it is infinite."""

    dtype: ClassVar[torch.dtype] = torch.float16

    def encode(self, value: Tensor, write: Writer) -> None:
        """Write the rounded numbers."""
        write.raw("half", value.to(self.dtype))

    def decode(self, shape: Sequence[int], read: Reader) -> Tensor:
        """Return the rounded numbers."""
        return read.raw("half", self.dtype, shape).float()


class BFloat16(Float16):
    """The upper half of float32: its whole range, off by at most 2^-8 of a number."""

    dtype = torch.bfloat16
