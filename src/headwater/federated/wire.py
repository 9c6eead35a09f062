"""Messages between server and clients: safetensors with a small JSON header, never pickle.

The simulator packs and unpacks the very bytes that a wire would carry, so the counts it reports are true.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Any

import safetensors.torch
import torch

from headwater.errors import FederationError
from headwater.federated.protocols import Instruction, Update
from headwater.weights import Weights

MOST_ROWS = 10**9
"""More rows than any client has: a larger number is a mistake or an attempt to own the weighted mean."""


def pack_instruction(instruction: Instruction) -> bytes:
    """Return the bytes of an instruction."""
    return _pack(instruction.weights, {"round": instruction.round, "seed": instruction.seed})


def unpack_instruction(message: bytes) -> Instruction:
    """Return the instruction of a message."""
    weights, facts = _unpack(message)
    return Instruction(round=int(facts["round"]), weights=weights, seed=int(facts["seed"]))


def pack_update(update: Update) -> bytes:
    """Return the bytes of an update."""
    return _pack(update.delta, _facts(update))


def update_size(update: Update) -> int:
    """Return the bytes of `pack_update`, without making them."""
    return _size(update.delta, _facts(update))


def instruction_size(instruction: Instruction) -> int:
    """Return the bytes of `pack_instruction`, without making them."""
    return _size(instruction.weights, {"round": instruction.round, "seed": instruction.seed})


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


def unpack_update(message: bytes, *, client: str, instruction: Instruction) -> Update:
    """Return the update of a message.

    Raises:
        FederationError: It isn't an update to these weights by this client.
    """
    try:
        delta, facts = _unpack(message)
        update = Update(str(facts["client"]), delta, int(facts["rows"]), dict(facts["metrics"]))
    except Exception as error:  # a peer may send anything
        raise FederationError(
            f"not an update: {error}", client=client, round_number=instruction.round, stage="receive"
        ) from error
    check_update(update, client=client, instruction=instruction)
    return update


def check_update(update: Update, *, client: str, instruction: Instruction) -> None:
    """Check what a client has answered.

    Raises:
        FederationError: It isn't an update to these weights by this client.
    """
    given = {name: (value.dtype, value.shape) for name, value in update.delta.items()}
    wanted = {name: (value.dtype, value.shape) for name, value in instruction.weights.items()}
    if update.client != client or given != wanted or not 0 <= update.rows <= MOST_ROWS:
        raise FederationError(
            "not an update of the shared weights' names, types and shapes, under the client's own name",
            client=client,
            round_number=instruction.round,
            stage="receive",
        )
    # A sum is finite only if all of it is, and is had at a fraction of the time; if it isn't, it may have overflowed.
    if not all(math.isfinite(value.sum()) or bool(value.isfinite().all()) for value in update.delta.values()):
        raise FederationError(
            "its training diverged, its update isn't finite: lower --client-lr",
            client=client,
            round_number=instruction.round,
            stage="receive",
        )


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
