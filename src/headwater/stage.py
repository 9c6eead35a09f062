"""Running a stage: it works in ``OUT.partial`` and becomes ``OUT`` in one step, so nothing is ever half written."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from headwater.checkpoint import Checkpoint
from headwater.config import RunOptions, cores
from headwater.data.card import resolve
from headwater.errors import CheckpointError, ConfigError, HeadwaterError, OutputError
from headwater.files import output_errors, sha256_file, write_atomic
from headwater.folder import seal
from headwater.lineage import LineageEntry
from headwater.progress import Progress
from headwater.records import STAGE_FILE, Parent, StageRecord

_RUN_FILE = ".run.json"
_LOCK_FILE = ".lock"
_STATE_FILE = ".state.safetensors"
_FILES = ("data", "test", "source_data", "lm_data", "vat_data", "vectors", "weights", "vocabulary")
"""Options that name files of rows or weights."""


@dataclass
class Workspace:
    """What a stage works with.

    Attributes:
        folder: Where to write; becomes the output folder when the stage is done.
        device: Where to compute.
        progress: Where to show how it goes.
    """

    folder: Path
    device: torch.device
    progress: Progress

    def state_file(self, name: str = "") -> Path:
        """Return where an interrupted part of the work continues from."""
        return self.folder / (f".{name}{_STATE_FILE}" if name else _STATE_FILE)


@dataclass
class Outcome:
    """What a stage made.

    Attributes:
        checkpoint: The new checkpoint; None where the stage wrote its own files.
        facts: Fields of the stage record.
        parents: The checkpoints it started from.
        artifact_of: The checkpoint whose model the stage's own files hold; they carry on its lineage.
    """

    checkpoint: Checkpoint | None
    facts: dict[str, Any] = field(default_factory=dict)
    parents: tuple[Checkpoint, ...] = ()
    artifact_of: Checkpoint | None = None


def run_stage(
    verb: str, options: RunOptions, work: Callable[[Workspace], Outcome], source: Checkpoint | None = None
) -> StageRecord:
    """Run a stage and publish its folder.

    Args:
        verb: The command's name.
        options: Its options; `out` is the folder.
        work: Does the work.
        source: The checkpoint that it starts from; only with the same one can it be resumed.

    Raises:
        OutputError: The folder holds something else, or an interrupted run was not asked to be resumed.
    """
    asked = {k: v for k, v in options.model_dump(mode="json").items() if k not in options.no_result}
    asked |= {"verb": verb, "checkpoint": source.identity if source else None}
    with output_errors(options.out):
        if done := finished(options):
            _check_same(done, options, asked)
            return done
    device = set_device(options)
    partial = working_folder(options)
    started, clock = datetime.now(UTC), time.perf_counter()
    with (
        _locked(partial),
        Progress(f"{verb} {options.out.name}", quiet=options.quiet) as progress,
        _tidied(partial),
    ):
        spent = _open_partial(partial, options, asked, _contents(options))
        notes = options.notes()
        for note in notes:
            progress.note(note)
        outcome = work(Workspace(partial, device, progress))
        facts: dict[str, Any] = {
            "name": options.out.name,
            "verb": verb,
            "config": options.model_dump(mode="json", exclude={"resume", "quiet"}),
            "seed": options.seed,
            "parents": [parent_of(checkpoint) for checkpoint in outcome.parents],
            "started": started.isoformat(timespec="seconds"),
            "wall_seconds": spent + time.perf_counter() - clock,
            "versions": versions(),
            "device": device.type,
            "threads": torch.get_num_threads(),
        }
        if outcome.checkpoint:
            facts |= {"identity": outcome.checkpoint.identity, "sizes": outcome.checkpoint.sizes()}
        if made := outcome.checkpoint or outcome.artifact_of:
            facts["model"] = summary(made)
        notes += outcome.facts.get("notes", [])
        record = StageRecord(**(facts | outcome.facts | {"notes": notes}))
        _publish(options.out, partial, record, outcome)
    return record


def working_folder(options: RunOptions) -> Path:
    """Return where a stage works until it is done."""
    return options.out.with_name(options.out.name + ".partial")


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Keep other processes from working in the folder; the system lets go of the lock however this one ends."""
    if partial.exists() and not partial.is_dir():
        raise OutputError(f"{partial} holds something else, a file: move it away, or choose another --out")
    with output_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(lock)
    except BlockingIOError as error:
        os.close(lock)
        raise OutputError(
            f"another process is working in {partial}: wait until it ends or stop it, or choose another --out"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _lock(file: int) -> None:
    # The workers of a killed process have its lock until the system has ended them too.
    end = time.monotonic() + 1.0
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


@contextmanager
def _tidied(partial: Path) -> Iterator[None]:
    """Leave no folder behind where the input was refused before any work was done."""
    try:
        with output_errors(partial):
            yield
    except HeadwaterError:
        if partial.is_dir() and {path.name for path in partial.iterdir()} <= {_RUN_FILE, _LOCK_FILE}:
            shutil.rmtree(partial)
        raise


def _publish(out: Path, partial: Path, record: StageRecord, outcome: Outcome) -> None:
    record.save(partial)
    entry = LineageEntry(**{name: getattr(record, name) for name in LineageEntry.model_fields})
    if outcome.checkpoint:
        replace(outcome.checkpoint, lineage=outcome.checkpoint.lineage.then(entry)).save(partial)
    else:
        if outcome.artifact_of:
            replace(outcome.artifact_of, lineage=outcome.artifact_of.lineage.then(entry)).save_papers(partial)
        seal(partial)
    if out.exists():
        out.rmdir()
    partial.replace(out)
    # Only now: whoever is killed, or finds the disk full, before this line can still resume, from a whole state.
    _tidy(out)


def _tidy(out: Path) -> None:
    """Remove what only a run that goes on needs; the run's file last, which says that there is more."""
    for leftover in out.glob(".*"):
        if leftover.name != _RUN_FILE:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    (out / _RUN_FILE).unlink()


def finished(options: RunOptions) -> StageRecord | None:
    """Return the record of what is complete already, to be kept if resuming; refuse any other content.

    Raises:
        OutputError: The folder can't be written, or it isn't to be.
    """
    out = options.out
    if not out.name:
        raise OutputError(f"--out {out}: a stage makes a new folder; give it a name, such as {out / 'model'}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not out.is_dir():
        raise OutputError(f"{out} is a file: --out names a folder; choose another")
    if not (out / STAGE_FILE).exists():
        raise OutputError(f"{out} holds something else: choose a new or empty folder for --out")
    record = StageRecord.load(out)
    if not options.resume:
        raise OutputError(f"{out} already holds the result of a {record.verb!r}: choose another --out, or delete it")
    if (
        out / _RUN_FILE
    ).exists():  # it was killed when it was finished; in any other folder hidden files are the user's
        _tidy(out)
    return record


def _check_same(record: StageRecord, options: RunOptions, asked: dict[str, Any]) -> None:
    """Refuse to keep what was made with other options or from other files."""
    out = options.out
    stored = {k: v for k, v in record.config.items() if k not in options.no_result}
    stored |= {"verb": record.verb, "checkpoint": record.parents[0].identity if record.parents else None}
    _same(stored, asked, out)
    used = {use.path: use.sha256 for use in record.data}  # a file that was named may not have been read
    for (option, name), content in _contents(options).items():
        if used.get(name, content) != content:
            raise ConfigError(
                f"the content of {option} isn't what {out} was made from: choose another --out, or delete it"
            )


def _contents(options: RunOptions) -> dict[tuple[str, str], str]:
    """Return the checksums of the files that a run begins with, by option and name: it can't go on with others."""
    found = {option: getattr(options, option, None) for option in _FILES}
    several = {option: value if isinstance(value, tuple) else (value,) for option, value in found.items()}
    paths = {(option, str(name)): resolve(str(name)) for option, names in several.items() for name in names if name}
    return {key: sha256_file(path) for key, path in paths.items() if path.is_file()}


def _open_partial(
    partial: Path, options: RunOptions, asked: dict[str, Any], contents: dict[tuple[str, str], str]
) -> float:
    """Prepare the folder to work in; return the seconds that earlier attempts spent on what is taken up from it."""
    asked = asked | {f"the content of {option} ({name})": content for (option, name), content in contents.items()}
    run_file = partial / _RUN_FILE
    found = [path for path in partial.iterdir() if path.name != _LOCK_FILE]
    if not run_file.exists():
        # A run that was killed before it began leaves nothing, or a file that was never finished.
        if not all(path.name.endswith(".tmp") for path in found):
            (partial / _LOCK_FILE).unlink()
            raise OutputError(f"{partial} holds something else: move it away, or choose another --out")
    elif options.resume:
        stored = _read_run(run_file)
        # A file of rows that is missing now has no checksum; reading it will say so.
        _same({key: value for key, value in stored.items() if key in asked}, asked, partial)
        spent = float(stored.get("spent", 0.0)) + _worked(partial)
        write_atomic(run_file, json.dumps(stored | {"spent": spent}))
        return spent
    elif any(path.name.endswith(_STATE_FILE) for path in found):
        raise OutputError(
            f"{partial} holds an interrupted run: add --resume to continue it, or delete it to start again"
        )
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomic(run_file, json.dumps(asked))
    return 0.0


def _read_run(path: Path) -> dict[str, Any]:
    try:
        stored: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: delete {path.parent} and start again") from error
    return stored


def _worked(partial: Path) -> float:
    """Return the seconds from the beginning of the last attempt to the last state that it saved."""
    began = (partial / _RUN_FILE).stat().st_mtime
    return max([0.0, *(path.stat().st_mtime - began for path in partial.glob(f"*{_STATE_FILE}"))])


def _same(stored: dict[str, Any], asked: dict[str, Any], where: Path) -> None:
    for key in ("verb", "checkpoint", *sorted(stored.keys() | asked.keys())):
        if stored.get(key) != asked.get(key):
            raise ConfigError(
                f"{where} was begun with {key} = {stored.get(key)!r}, now it is {asked.get(key)!r}: "
                "resume with the same options, or choose another --out"
            )


def set_device(options: RunOptions) -> torch.device:
    """Return the device to compute on; set the number of threads.

    Raises:
        ConfigError: There is no such device.
    """
    torch.set_num_threads(options.threads or cores())
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': torch finds no usable GPU here; use --device cpu or auto")
    use_gpu = options.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def parent_of(checkpoint: Checkpoint) -> Parent:
    """Return the record of a checkpoint that a stage starts from."""
    last = checkpoint.lineage.stages[-1] if checkpoint.lineage.stages else None
    return Parent(
        name=last.name if last else "unnamed", verb=last.verb if last else "import", identity=checkpoint.identity
    )


def summary(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a reader wants to know of a model."""
    config, encoder = checkpoint.config, checkpoint.config.encoder
    if config.channels:
        reads: dict[str, Any] = {"channels": config.channels, "projection": encoder.projection}
    else:
        reads = {"vocabulary": config.vocabulary_size, "tokenizer": config.featurizer.model_dump()["tokenizer"]}
    return {
        "cell": encoder.cell,
        "layers": encoder.layers,
        "bidirectional": encoder.bidirectional,
        "hidden_size": encoder.hidden_size,
        "embedding_size": encoder.embedding_size,
        **reads,
        "parameters": checkpoint.parameter_count(),
        "task": checkpoint.config.task["name"],
        "labels": list(checkpoint.labels),
        "clients": len(checkpoint.personal),
    }


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {
        "headwater": version("headwater"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
