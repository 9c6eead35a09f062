"""Messages between server and clients: safetensors with a small JSON header, never pickle.

The simulator packs the very bytes that a wire would carry, or counts them, so the counts it reports are true.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import safetensors.torch
import torch

from headwater.errors import FederationError, MissingDependency
from headwater.federated.codecs.base import MARK
from headwater.federated.protocols import Instruction, Update, UpdateTransform
from headwater.weights import Weights

MOST_ROWS = 10**9
"""More rows than any client has: a larger number is a mistake or an attempt to own the weighted mean."""
_DIVERGED = (
    "its training diverged, its update isn't finite: lower --client-lr, or what else its loss or its update is "
    "multiplied by"
)
_LARGEST = 1e30
"""Of a client's own figures: some of these can still be added up, and an integer of any length is compared with it."""
_ROOM = 1 << 20
"""Bytes that a message may have beyond twice those of what is aggregated."""


@dataclass(frozen=True)
class Wire:
    """How messages are written.

    Attributes:
        zstd: Level of the compression of whole messages, 1 to 19; 0 is without.
    """

    zstd: int = 0

    def pack_instruction(self, instruction: Instruction) -> bytes:
        """Return the bytes of an instruction."""
        return self._squeezed(_pack(*_instruction_parts(instruction)))

    def unpack_instruction(self, message: bytes, most: int = 1 << 34) -> Instruction:
        """Return the instruction of a message, which is still to be decoded if its weights are encoded.

        Args:
            message: From the server.
            most: Bytes that it may unpack to.
        """
        tensors, facts = _unpack(self._opened(message, most))
        if any(MARK in name for name in tensors):
            return Instruction(int(facts["round"]), {}, int(facts["seed"]), encoded=tensors)
        weights = {name: value for name, value in tensors.items() if "/" not in name}
        extra = {name: value for name, value in tensors.items() if "/" in name}
        return Instruction(int(facts["round"]), weights, int(facts["seed"]), extra)

    def pack_update(self, update: Update) -> bytes:
        """Return the bytes of an update."""
        return self._squeezed(_pack(update.delta, _facts(update)))

    def unpack_update(self, message: bytes, *, client: str, instruction: Instruction, like: Weights) -> Update:
        """Return the update of a message, which is still to be received (see `received`).

        Args:
            message: Of a peer.
            client: Who is to have sent it.
            instruction: That it answers.
            like: What updates are aggregated as: a message is not much larger than these tensors.

        Raises:
            FederationError: It isn't an update by this client.
        """
        most = 2 * sum(value.numel() * value.element_size() for value in like.values()) + _ROOM
        try:
            delta, facts = _unpack(self._opened(message, most))
            update = Update(str(facts["client"]), delta, int(facts["rows"]), dict(facts["metrics"]))
        except Exception as error:  # a peer may send anything
            raise _refused(f"not an update: {error}", client, instruction) from error
        if update.client != client or not 0 <= update.rows <= MOST_ROWS:
            raise _refused("not an update under the client's own name, with its number of rows", client, instruction)
        return update

    def instruction_size(self, instruction: Instruction) -> int:
        """Return the bytes of `pack_instruction`; without compression they are counted, not made."""
        return len(self.pack_instruction(instruction)) if self.zstd else _size(*_instruction_parts(instruction))

    def update_size(self, update: Update) -> int:
        """Return the bytes of `pack_update`; without compression they are counted, not made."""
        return len(self.pack_update(update)) if self.zstd else _size(update.delta, _facts(update))

    def _squeezed(self, message: bytes) -> bytes:
        return _zstandard().ZstdCompressor(level=self.zstd).compress(message) if self.zstd else message

    def _opened(self, message: bytes, most: int) -> bytes:
        if not self.zstd:
            if len(message) > most:
                raise ValueError(f"{len(message)} bytes, where {most} are enough")
            return message
        size = _zstandard().frame_content_size(message)
        if not 0 <= size <= most:
            raise ValueError(f"unpacks to {size} bytes, where {most} are enough")
        opened: bytes = _zstandard().ZstdDecompressor().decompress(message, max_output_size=most)
        return opened


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingDependency("zstandard", extra="zstd", purpose="compressing messages (--zstd)") from error
    return zstandard


def received(update: Update, instruction: Instruction, transforms: Sequence[UpdateTransform], like: Weights) -> Update:
    """Return an update as it is aggregated: the transforms undone, and checked.

    Args:
        update: As it came over the wire.
        instruction: That it answers.
        transforms: Of the algorithm.
        like: Tensors of the names, types and shapes that it must have (`protocols.expected`).

    Raises:
        FederationError: It isn't an update to these weights by this client.
    """
    client, encoded = update.client, sum(transform.decodes for transform in transforms)
    shapes = {name: (value.dtype, value.shape) for name, value in like.items()}
    try:
        if not encoded:
            _check_known(update, shapes)
        for transform in reversed(transforms):
            update = transform.on_receive(update, instruction)
            if transform.decodes:
                encoded -= 1
                if not encoded:  # the others are given known tensors only
                    _check_known(update, shapes)
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, ArithmeticError) as error:  # a peer's tensors
        raise _refused(f"its update can't be decoded: {error}", client, instruction) from error
    given = {name: (value.dtype, value.shape) for name, value in update.delta.items()}
    if given != shapes:
        raise _refused("not an update of the shared weights' names, types and shapes", client, instruction)
    # A sum is finite only if all of it is, and is had at a fraction of the time; if it isn't, it may have overflowed.
    if not all(math.isfinite(value.sum()) or bool(value.isfinite().all()) for value in update.delta.values()):
        raise _refused(_DIVERGED, client, instruction)
    if not all(type(value) in (int, float) and abs(value) <= _LARGEST for value in update.metrics.values()):
        raise _refused("its figures aren't numbers, or too large: lower --client-lr", client, instruction)
    return update


def _check_known(update: Update, shapes: Mapping[str, tuple[torch.dtype, torch.Size]]) -> None:
    """Refuse tensors that a transform can't be given; what is missing may still be added by one.

    Raises:
        ValueError: There are some.
    """
    for name, value in update.delta.items():
        if shapes.get(name) != (value.dtype, value.shape):
            raise ValueError(f"{name!r} is none of the tensors that were asked for, or of another type or shape")


def _refused(message: str, client: str, instruction: Instruction) -> FederationError:
    return FederationError(message, client=client, round_number=instruction.round, stage="receive")


def _size(weights: Weights, facts: dict[str, Any]) -> int:
    shapes = tuple((name, value.dtype, tuple(value.shape)) for name, value in weights.items())
    header = _empty_header(shapes) + len(json.dumps(json.dumps(facts, separators=(",", ":"))))
    body = sum(value.numel() * value.element_size() for value in weights.values())
    return 8 + -(-header // 8) * 8 + body


@lru_cache(maxsize=8)
def _empty_header(shapes: tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]) -> int:
    """Return the length of a message's JSON header around its facts."""
    message = _pack({name: torch.zeros(shape, dtype=dtype) for name, dtype, shape in shapes}, {})
    header = message[8 : 8 + int.from_bytes(message[:8], "little")].rstrip()
    return len(header) - len(json.dumps("{}"))


def _instruction_parts(instruction: Instruction) -> tuple[Weights, dict[str, Any]]:
    tensors = instruction.encoded or instruction.weights | instruction.extra
    return tensors, {"round": instruction.round, "seed": instruction.seed}


def _facts(update: Update) -> dict[str, Any]:
    return {"client": update.client, "rows": update.rows, "metrics": dict(update.metrics)}


def _pack(weights: Weights, facts: dict[str, Any]) -> bytes:
    weights = {name: value.contiguous() for name, value in weights.items()}
    packed: bytes = safetensors.torch.save(weights, {"facts": json.dumps(facts, separators=(",", ":"))})
    return packed


def _unpack(message: bytes) -> tuple[Weights, dict[str, Any]]:
    header = json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])
    facts: dict[str, Any] = json.loads(header["__metadata__"]["facts"])
    return safetensors.torch.load(message), facts
