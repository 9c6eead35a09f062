"""Clients in this process: each works on its own rows only, and all it sends is the bytes of its update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headwater.data.examples import Examples
from headwater.federated.protocols import ClientId, ClientUpdate, Instruction, Update, UpdateTransform
from headwater.federated.wire import pack_instruction, pack_update, unpack_instruction, unpack_update


class LocalCohort:
    """A simulated population.

    Args:
        data: Each client's training rows.
        client_update: What a client does.
    """

    def __init__(self, data: Mapping[ClientId, Examples], client_update: ClientUpdate) -> None:
        self._data = data
        self._client_update = client_update
        self.bytes_down = 0
        self.bytes_up = 0

    def clients(self) -> Sequence[ClientId]:
        """Return all clients in sorted order."""
        return sorted(self._data)

    def gather(
        self, instruction: Instruction, clients: Sequence[ClientId], transforms: Sequence[UpdateTransform]
    ) -> Iterator[Update]:
        """Yield the clients' updates as they came over the wire, in the order of `clients`."""
        request = pack_instruction(instruction)
        received = unpack_instruction(request)
        for client in clients:
            update = self._client_update(received, client, self._data[client])
            for transform in transforms:
                update = transform.on_client(update, received)
            reply = pack_update(update)
            self.bytes_down += len(request)
            self.bytes_up += len(reply)
            answer = unpack_update(reply, client=client, instruction=instruction)
            for transform in reversed(transforms):
                answer = transform.on_receive(answer, instruction)
            yield answer
