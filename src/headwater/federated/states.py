"""What clients keep at home between rounds: a file for each client that has something to keep."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

from headwater.federated.protocols import ClientId
from headwater.resume_state import load_state, save_state
from headwater.weights import Weights


class ClientStates:
    """Clients' states in a folder, one file for a client and a round.

    A round that was killed is run again, and must find what it found the first time. So a file is never written over:
    its name tells the round that made it, the newest one before the round at hand is read, and older ones than that
    are removed when a new one is whole.

    Args:
        folder: Made when something is first written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, client: ClientId, round_number: float = math.inf) -> Weights:
        """Return what the client kept from the rounds before this one, or from all; empty where it kept nothing.

        Raises:
            CheckpointError: The file is damaged.
        """
        earlier = [number for number in self._rounds(client) if number < round_number]
        found = load_state(self._file(client, max(earlier))) if earlier else None
        return found[0] if found else {}

    def write(self, client: ClientId, round_number: int, state: Weights) -> None:
        """Keep what the client has after this round."""
        folder = self._home(client)
        folder.mkdir(parents=True, exist_ok=True)
        earlier = sorted(number for number in self._rounds(client) if number < round_number)
        save_state(self._file(client, round_number), state, {"client": client})
        for number in earlier[:-1]:
            self._file(client, number).unlink()

    def _rounds(self, client: ClientId) -> list[int]:
        return [int(path.stem) for path in self._home(client).glob("*.safetensors")]

    def _home(self, client: ClientId) -> Path:
        # Names are anything: a hash is a file name, and its first digits keep folders small.
        digest = hashlib.sha256(client.encode()).hexdigest()
        return self._folder / digest[:2] / digest

    def _file(self, client: ClientId, round_number: int) -> Path:
        return self._home(client) / f"{round_number}.safetensors"
