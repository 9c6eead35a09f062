"""Messages between server and clients: safetensors with a small JSON header, never pickle.

The simulator packs and unpacks the very bytes that a wire would carry, so the counts it reports are true.
"""

from __future__ import annotations

import json
from typing import Any

import safetensors.torch

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
    facts = {"client": update.client, "rows": update.rows, "metrics": dict(update.metrics)}
    return _pack(update.delta, facts)


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
    given = {name: (value.dtype, value.shape) for name, value in delta.items()}
    wanted = {name: (value.dtype, value.shape) for name, value in instruction.weights.items()}
    if update.client != client or given != wanted or not 0 <= update.rows <= MOST_ROWS:
        raise FederationError(
            "not an update of the shared weights' names, types and shapes, under the client's own name",
            client=client,
            round_number=instruction.round,
            stage="receive",
        )
    if not all(bool(value.isfinite().all()) for value in delta.values()):
        raise FederationError(
            "its training diverged, its update isn't finite: lower --client-lr",
            client=client,
            round_number=instruction.round,
            stage="receive",
        )
    return update


def _pack(weights: Weights, facts: dict[str, Any]) -> bytes:
    packed: bytes = safetensors.torch.save(weights, {"facts": json.dumps(facts, separators=(",", ":"))})
    return packed


def _unpack(message: bytes) -> tuple[Weights, dict[str, Any]]:
    header = json.loads(message[8 : 8 + int.from_bytes(message[:8], "little")])
    facts: dict[str, Any] = json.loads(header["__metadata__"]["facts"])
    return safetensors.torch.load(message), facts
