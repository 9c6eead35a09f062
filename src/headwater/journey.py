"""A journey: the stages of a TOML file in order, each from the folder of an earlier one; resumes where it stopped.

::

    name = "reviews"                # where it goes by default: runs/reviews

    [defaults]                      # options of every stage that knows them
    seed = 0
    text = "text"

    [[stage]]
    name = "movies"
    verb = "pretrain"
    data = "card:movie_reviews/train"

    [[stage]]
    name = "{method}-{rows}-s{seed}"    # one stage for each combination
    verb = "transfer"
    from = "movies"
    data = "card:amazon_reviews/train"
    matrix = { method = ["scratch", "init"], rows = [50, 200], seed = [0, 1, 2] }

    [quick]                         # options that `headwater demo --quick` changes
    "movies.epochs" = 2

A stage's other keys are its verb's options, the same as the flags. ``--set seed=1`` changes an option wherever a stage
has it; where a matrix lists several values, the one value takes their place.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from headwater.config import Config, cores, read_toml
from headwater.errors import ConfigError, HeadwaterError, OutputError, did_you_mean
from headwater.files import output_errors
from headwater.own_process import settle, settled
from headwater.progress import Progress
from headwater.records import STAGE_FILE, StageRecord
from headwater.verbs import FILE, STAGES, VERBS

_OWN_KEYS = {"name", "verb", "from", "matrix"}
_RUN_KEYS = {"out", "resume", "quiet"}
"""Options that the journey itself decides."""


@dataclass(frozen=True)
class Step:
    """One stage of a journey.

    Attributes:
        name: Its folder's name.
        verb: What it does.
        start: The name of the stage it starts from, a checkpoint's folder, ``pretrained:NAME``, a file, or nothing.
        options: The verb's options.
    """

    name: str
    verb: str
    start: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Journey:
    """Stages in an order in which each comes after the one it starts from."""

    name: str
    steps: tuple[Step, ...]


def read_journey(path: Path, changes: Sequence[str] = ()) -> Journey:
    """Read and check a journey file; nothing is run.

    Args:
        path: The TOML file.
        changes: ``KEY=VALUE``: an option of all stages that know it, or ``STAGE.KEY=VALUE`` of one.

    Raises:
        ConfigError: The file, a stage or an option can't be used.
    """
    settings = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"--set {change}: expected KEY=VALUE, such as --set seed=1 or --set movies.epochs=2")
        settings[key.strip()] = _toml_value(value.strip())
    return _journey(read_toml(path), settings, str(path), path.stem)


def demo_journey(language: str, *, quick: bool) -> Journey:
    """Return the packaged journey on reviews in a language (``"en"`` or ``"zh"``)."""
    place = resources.files("headwater") / "journeys" / f"reviews_{language}.toml"
    document = tomllib.loads(place.read_text(encoding="utf-8"))
    return _journey(document, document.get("quick", {}) if quick else {}, place.name, f"demo_{language}")


def run_journey(
    journey: Journey, out: Path, *, resume: bool = False, jobs: int = 0, quiet: bool = False
) -> list[StageRecord]:
    """Run the stages of a journey.

    Stages that don't wait for each other run at once, each in a process with one thread: the results are the same
    bits as one after the other.

    Args:
        journey: What to run.
        out: The folder that gets one folder a stage.
        resume: Keep what is done, continue what was interrupted.
        jobs: Stages at once; 0 takes the number of cores.
        quiet: Show nothing.

    Raises:
        HeadwaterError: A stage failed; those that were done stay done.
    """
    if jobs < 0:
        raise ConfigError(f"jobs = {jobs}: give the number of stages to run at once, or 0 for the number of cores")
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file: --out names a folder; choose another")
    if out.exists() and not resume and any(out.iterdir()):
        raise ConfigError(f"{out} isn't empty: add --resume to continue the journey, or choose another --out")
    with output_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    jobs = jobs or cores()
    waiting = list(journey.steps)
    with Progress(journey.name, quiet=quiet) as progress:
        if jobs == 1:
            for step in waiting:
                _run_step(step, out, resume, quiet)
                _show(progress, out, step, journey)
        else:
            _run_parallel(waiting, out, progress, journey, resume=resume, jobs=jobs)
    return [StageRecord.load(out / step.name) for step in journey.steps]


def _run_parallel(
    waiting: list[Step], out: Path, progress: Progress, journey: Journey, *, resume: bool, jobs: int
) -> None:
    spawn = multiprocessing.get_context("spawn")
    running: dict[Future[None], Step] = {}
    names = {step.name for step in waiting}
    done: set[str] = set()
    pool = ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker, initargs=(os.getpid(), settled()))
    try:
        while waiting or running:
            # No more than there are workers: what lies in the pool's queue would still run after a failure.
            for step in [s for s in waiting if s.start not in names or s.start in done][: jobs - len(running)]:
                waiting.remove(step)
                running[pool.submit(_run_step, step, out, resume, True)] = step
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                step = running.pop(future)
                future.result()
                done.add(step.name)
                _show(progress, out, step, journey)
    except BrokenProcessPool as error:
        raise HeadwaterError(
            "a worker process was killed (often for want of memory): run again with --resume, perhaps --jobs 1"
        ) from error
    except BaseException as error:
        # A stage that is stopped can be resumed; one that has failed lets the others that run come to their end.
        if not isinstance(error, HeadwaterError):
            for worker in multiprocessing.active_children():
                worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(parent: int, own: bool) -> None:  # noqa: FBT001 - goes through a pool
    """Set up a worker: one thread, the parent's settings, and an end of its own if the parent is killed."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if own:
        settle()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_step(step: Step, out: Path, resume: bool, quiet: bool) -> None:  # noqa: FBT001 - goes through a pool
    verb = VERBS[step.verb]
    given = step.options | {"out": out / step.name, "resume": resume, "quiet": quiet}
    options = verb.options_class().parse(given, source=f"stage {step.name!r}")
    start = out / step.start if (out / step.start / STAGE_FILE).exists() else step.start
    try:
        verb(options, start)
    except HeadwaterError as error:
        raise HeadwaterError(f"stage {step.name!r}: {error}") from error


def _show(progress: Progress, out: Path, step: Step, journey: Journey) -> None:
    record = StageRecord.load(out / step.name)
    figures = record.metrics.get("test") or record.metrics.get("valid") or {}
    text = " ".join(f"{name} {value:.3f}" for name, value in figures.items() if name in ("accuracy", "loss"))
    finished = sum((out / s.name / STAGE_FILE).exists() for s in journey.steps)
    progress.note(f"{finished}/{len(journey.steps)} {step.name} ({record.wall_seconds:.1f} s) {text}")
    progress.advance(finished, len(journey.steps))


def _journey(document: dict[str, Any], settings: dict[str, Any], source: str, name: str) -> Journey:
    unknown = document.keys() - {"name", "defaults", "stage", "quick"}
    if unknown:
        key = min(unknown)
        hint = did_you_mean(key, ["name", "defaults", "stage", "quick"])
        raise ConfigError(f"{source}: unknown key {key!r}{hint}; known: name, defaults, stage, quick")
    stages = document.get("stage", [])
    if not stages or not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{source}: a journey needs at least one [[stage]] with a name and a verb")
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        raise ConfigError(f"{source}: defaults = {defaults!r}: write a table [defaults] of options")
    general = {key: value for key, value in settings.items() if "." not in key}
    steps: list[Step] = []
    for stage in stages:
        own = {k.partition(".")[2]: v for k, v in settings.items() if k.partition(".")[0] == stage.get("name")}
        steps += _expand(stage | own, defaults, general | own, source)
    _check_defaults(defaults, steps, source)
    _check_settings(settings, [str(stage.get("name")) for stage in stages], steps, source)
    _check_order(steps, source)
    return Journey(str(document.get("name", name)), tuple(steps))


def _expand(stage: dict[str, Any], defaults: dict[str, Any], changes: dict[str, Any], source: str) -> list[Step]:
    """Return the steps of a stage; of an option given twice, the latter counts: default, stage, matrix, change."""
    for key in ("name", "verb"):
        if not isinstance(stage.get(key), str):
            raise ConfigError(f"{source}: a stage lacks {key!r}: {stage}")
    if stage["verb"] not in STAGES:
        hint = did_you_mean(stage["verb"], STAGES)
        raise ConfigError(f"{source}: unknown verb {stage['verb']!r}{hint}; a stage is one of {', '.join(STAGES)}")
    config = VERBS[stage["verb"]].options_class()
    matrix = stage.get("matrix", {})
    if not isinstance(matrix, dict) or not all(isinstance(values, list) and values for values in matrix.values()):
        raise ConfigError(
            f"{source}: matrix = {matrix}: give each option a list of values, such as {{ seed = [0, 1, 2] }}"
        )
    for key in sorted(matrix.keys() & stage.keys() - changes.keys()):
        raise ConfigError(
            f"{source}, stage {stage['name']!r}: {key} = {stage[key]!r} would have no effect, as the stage's matrix "
            f"goes through {matrix[key]}: change the matrix instead"
        )
    changes = {key: value for key, value in changes.items() if key in config.model_fields}
    axes = {key: [changes[key]] if key in changes else values for key, values in matrix.items()}
    steps = []
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        given = {k: v for k, v in defaults.items() if k in config.model_fields}
        given |= {k: v for k, v in stage.items() if k not in _OWN_KEYS}
        given |= chosen | changes
        shown = {key: "all" if key == "rows" and value == 0 else value for key, value in given.items()}
        try:
            name, start = stage["name"].format(**shown), str(stage.get("from", "")).format(**shown)
        except (KeyError, IndexError, ValueError) as error:
            raise ConfigError(f"{source}: the name {stage['name']!r} has an unknown part: {error}") from error
        _check_options(config, given, f"{source}, stage {name!r}")
        verb = VERBS[stage["verb"]]
        if verb.subject and not verb.optional and not start:
            what = "file: add from = 'FILE'" if verb.subject == FILE else "checkpoint: add from = 'STAGE'"
            raise ConfigError(f"{source}, stage {name!r}: {stage['verb']} starts from a {what}")
        steps.append(Step(name, stage["verb"], start, given))
    return steps


def _check_options(config: type[Config], given: dict[str, Any], source: str) -> None:
    for key in _RUN_KEYS & given.keys():
        raise ConfigError(f"{source}: {key!r} is decided by the journey itself: remove it")
    config.parse(given | {"out": "checked"}, source=source)


def _check_order(steps: list[Step], source: str) -> None:
    names: set[str] = set()
    everyone = [step.name for step in steps]
    for step in steps:
        if step.name in names or not step.name or "/" in step.name or step.name.startswith("."):
            raise ConfigError(f"{source}: the stage name {step.name!r} stands twice or is no folder's name")
        if VERBS[step.verb].subject == FILE:
            known, wanted = Path(step.start).is_file(), "file"
        else:
            known = step.start in names or step.start.startswith("pretrained:") or Path(step.start).is_dir()
            wanted = f"earlier stage{did_you_mean(step.start, everyone)}, no checkpoint's folder and no pretrained:NAME"
        if step.start and not known:
            raise ConfigError(f"{source}, stage {step.name!r}: from = {step.start!r} is no {wanted}")
        names.add(step.name)


def _check_defaults(defaults: dict[str, Any], steps: list[Step], source: str) -> None:
    known = {field for step in steps for field in VERBS[step.verb].options_class().model_fields}
    for key in defaults:
        if key not in known:
            raise ConfigError(f"{source}, defaults: no stage has the option {key!r}{did_you_mean(key, known)}")


def _check_settings(settings: dict[str, Any], names: list[str], steps: list[Step], source: str) -> None:
    for key in settings:
        stage, dot, _ = key.partition(".")
        if dot and stage not in names:
            raise ConfigError(f"{source}: --set {key}: no stage is called {stage!r}{did_you_mean(stage, names)}")
        if not dot and not any(key in step.options for step in steps):
            known = sorted({option for step in steps for option in step.options})
            raise ConfigError(f"{source}: --set {key}: no stage has this option{did_you_mean(key, known)}")


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
