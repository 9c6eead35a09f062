"""Codecs as update transforms: one for what clients send, one for what the server sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from headwater.federated.codecs.base import Codec, decode, encode
from headwater.federated.protocols import Client, Instruction, Update, UpdateTransform, expected
from headwater.weights import Weights, add_scaled, part

_FEEDBACK = "feedback/"


@dataclass(frozen=True)
class EncodeUpdates(UpdateTransform):
    """Clients send their updates through a stack of codecs; the server decodes them as it takes them in.

    Attributes:
        stack: The codecs, first to last.
        error_feedback: A client adds to its next update what this one has lost (Seide et al. 2014; Karimireddy et al.
            2019, arXiv:1901.09847).
        before: The transforms that a client applies before this one: what they add is encoded too.
    """

    decodes: ClassVar[bool] = True

    stack: Sequence[Codec]
    error_feedback: bool = False
    before: Sequence[UpdateTransform] = ()

    def on_client(self, update: Update, instruction: Instruction, client: Client) -> Update:
        """Encode; keep what that loses."""
        delta, key = update.delta, _key(instruction, update.client)
        if not self.error_feedback:
            return replace(update, delta=encode(delta, self.stack, key))
        delta = add_scaled(delta, part(client.state, _FEEDBACK))
        tensors = encode(delta, self.stack, key)
        lost = add_scaled(delta, decode(tensors, delta, self.stack, key), -1.0)
        client.state |= {_FEEDBACK + name: value for name, value in lost.items()}
        return replace(update, delta=tensors)

    def on_receive(self, update: Update, instruction: Instruction) -> Update:
        """Decode."""
        like = expected(instruction.weights, self.before)
        return replace(update, delta=decode(update.delta, like, self.stack, _key(instruction, update.client)))


@dataclass(frozen=True)
class EncodeWeights(UpdateTransform):
    """The server sends its weights, and what methods add to them, through a codec.

    Clients train from what they decode, and send their difference from that; the server adds it to the weights that it
    has itself, in full precision.

    Attributes:
        codec: A dense one, since weights aren't sparse.
    """

    codec: Codec

    def on_instruct(self, instruction: Instruction) -> Instruction:
        """Encode, and go on from what a client makes of it."""
        sent = encode(instruction.weights | instruction.extra, [self.codec], _key(instruction, ""))
        return self.decoded(replace(instruction, encoded=sent), instruction.weights, instruction.extra)

    def decoded(self, instruction: Instruction, weights: Weights, extra: Weights) -> Instruction:
        """Return an instruction as it was sent with its weights decoded.

        Args:
            instruction: Encoded.
            weights: Tensors of the names, types and shapes of its weights.
            extra: Likewise of what is sent beside them.

        Raises:
            ValueError: It isn't what this transform makes of such tensors.
        """
        made = decode(instruction.encoded, weights | extra, [self.codec], _key(instruction, ""))
        return replace(
            instruction, weights={name: made[name] for name in weights}, extra={name: made[name] for name in extra}
        )


def _key(instruction: Instruction, client: str) -> str:
    return f"{instruction.seed}/{instruction.round}/{client}"
