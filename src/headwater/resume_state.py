"""What an interrupted run continues from: one file of tensors, with plain facts in its header; never pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from headwater.errors import CheckpointError
from headwater.files import write_atomic
from headwater.weights import Weights


def save_state(path: Path | None, tensors: Weights, facts: dict[str, Any]) -> None:
    """Write a resume state in one atomic file: tensors, and facts as JSON in its header."""
    if path is not None:
        # The library refuses tensors that share memory, as the best weights and the current ones may.
        copies = {name: value.clone() for name, value in tensors.items()}
        said = json.dumps(facts)
        write_atomic(path, safetensors.torch.save(copies, {"facts": said, "sha256": _digest(copies, said)}))


def load_state(path: Path | None) -> tuple[Weights, dict[str, Any]] | None:
    """Read a resume state; None where there is none.

    Raises:
        CheckpointError: The file is damaged.
    """
    if path is None or not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as stream:
            said = stream.metadata()
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        facts, whole = json.loads(said["facts"]), said["sha256"] == _digest(tensors, said["facts"])
    except Exception as error:
        raise CheckpointError(
            f"the state of the interrupted run in {path} can't be read ({error}): delete {_folder(path)} and start "
            "again"
        ) from error
    if not whole:
        raise CheckpointError(
            f"the state of the interrupted run in {path} has changed since it was written: delete {_folder(path)} and "
            "start again"
        )
    return tensors, facts


def _digest(tensors: Weights, facts: str) -> str:
    """Return the SHA-256 of a state, whatever order its tensors are in."""
    digest = hashlib.sha256(facts.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Weights:
    """Return what an optimizer remembers of each parameter, by the parameter's number."""
    return {
        f"{index}/{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Weights) -> None:
    """Give an optimizer back what `optimizer_tensors` has returned."""
    state: dict[int, Weights] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _folder(path: Path) -> Path:
    """Return the folder of the interrupted run that a file of its state lies in, at whatever depth."""
    return next((parent for parent in path.parents if parent.suffix == ".partial"), path.parent)
