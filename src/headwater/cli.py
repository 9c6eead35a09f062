"""The command line: one verb a stage. Flags are made from the options' own fields and docstrings."""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_origin

from pydantic.fields import FieldInfo

from headwater.config import Config, RunOptions, read_toml
from headwater.errors import ConfigError, HeadwaterError, did_you_mean
from headwater.own_process import leads, settle
from headwater.records import Record
from headwater.verbs import STAGES, VERBS, Verb

_INTERRUPTED = 130
"""What a shell expects of a program that was stopped by Ctrl-C."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage, so that all errors look alike."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, or 2 for input that can't be used."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        return _run([argument for argument in given if argument != "--debug"])
    except HeadwaterError as error:
        if debug:
            traceback.print_exc()
        _say(f"headwater: error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        resumable = given[:1] and given[0] in {*STAGES, "run", "demo"}
        _say("headwater: interrupted" + ("; the same command with --resume continues" if resumable else ""))
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort: one line here, the details with --debug
        if debug:
            traceback.print_exc()
        said = " ".join(str(error).split())
        _say(f"headwater: internal error: {type(error).__name__}: {said} (--debug shows where)")
        return 1


def _run(given: list[str]) -> int:
    parser = _top_parser()
    if not given or given[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if given else 2
    if given[0] == "--version":
        from importlib.metadata import version

        _print(f"headwater {version('headwater')}")
        return 0
    name, *rest = given
    if name in VERBS:
        return _run_verb(name, VERBS[name], rest)
    others = {"report": _run_report, "run": _run_journey, "demo": _run_demo}
    if name not in others:
        known = [*VERBS, *others]
        raise ConfigError(f"unknown command {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return others[name](rest)


def _top_parser() -> argparse.ArgumentParser:
    rows = [f"  {name:<12} {verb.summary}" for name, verb in VERBS.items()]
    rows += [
        "  report       make one HTML page of all stages in a folder",
        "  run          run a journey: the stages of a TOML file",
        "  demo         run the whole journey on real reviews",
    ]
    return argparse.ArgumentParser(
        prog="headwater",
        description="Recurrent networks from pre-training to the device.",
        usage="headwater COMMAND ... [--debug]",
        epilog="commands:\n" + "\n".join(rows) + "\n\nheadwater COMMAND --help shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _verb_parser(name: str, verb: Verb) -> argparse.ArgumentParser:
    config = verb.options_class()
    parser = _Parser(
        prog=f"headwater {name}",
        usage=f"%(prog)s [options] {f'[{verb.subject}]' if verb.optional else verb.subject}",
        description=verb.summary[:1].upper() + verb.summary[1:] + ".",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if verb.subject:
        count, without = ("?", "; without it a new model is drawn") if verb.optional else (None, "")
        parser.add_argument("subject", metavar=verb.subject, nargs=count, help=_SUBJECT_HELP[verb.subject] + without)
    for title, names in _groups(config):
        group = parser.add_argument_group(title)
        for field in names:
            _add_flag(group, field, config.model_fields[field])
    parser.add_argument("--config", metavar="FILE", help="options from a TOML file; flags go before them")
    if name in ("evaluate", "doctor"):
        parser.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return parser


def _run_verb(name: str, verb: Verb, given: list[str]) -> int:
    config, parser = verb.options_class(), _verb_parser(name, verb)
    values = _parse(parser, given)
    subject, as_json = values.pop("subject", None), values.pop("json", False)
    options = config.parse(_from_file(values.pop("config", None), config) | values, source=parser.prog)
    if name in {*STAGES, "doctor"}:
        settle()
    result = verb(options, subject)
    if isinstance(options, RunOptions):
        if leads():
            _print_stage(options.out)
    elif isinstance(result, list):
        _print("\n".join(result))
    elif as_json:
        _print(result.model_dump_json() if isinstance(result, Record) else json.dumps(result))
    elif isinstance(result, Record):
        _print_record(result)
    else:
        _print_figures(result)
    return 0


_SUBJECT_HELP = {
    "CHECKPOINT": "the folder of a checkpoint, pretrained:NAME, or hf:OWNER/NAME",
    "CHECKPOINT_OR_ARTIFACT": "the folder of a checkpoint or of an exported artifact",
    "FILE": "a file of weights: .safetensors, .pt or .pth, .npz, .h5, .onnx",
}


def _groups(config: type[Config]) -> Iterator[tuple[str, list[str]]]:
    """Yield a title and its options for a class of options and each that it derives from."""
    left = set(config.model_fields)
    for cls in config.__mro__:
        own = left & inspect.get_annotations(cls).keys()
        if own:
            left -= own
            yield (
                (cls.__doc__ or "").partition("\n")[0].rstrip("."),
                [name for name in config.model_fields if name in own],
            )


def _add_flag(parser: argparse._ActionsContainer, name: str, info: FieldInfo) -> None:
    text = " ".join((info.description or "").split()).replace("%", "%%")
    several = get_origin(info.annotation) is tuple
    default = ", ".join(map(str, info.default)) if several else info.default
    if info.is_required():
        text += " (required)"
    elif default is not None and not isinstance(default, bool) and str(default) != "":
        text += f" (default: {default})"
    flag = flag_of(name)
    if info.annotation is bool:
        text += f" (default: {'on' if info.default else 'off'})"
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    else:
        choices = _choices(info.annotation)
        # A string with a check is a name from a family's table, which its help lists.
        name_kind = "NAME" if info.annotation is str and info.metadata else ""
        folder = "DIR" if name == "out" and info.is_required() else ""
        kind = choices or name_kind or folder or _KINDS.get(str(_element(info.annotation)), "VALUE")
        parser.add_argument(flag, dest=name, metavar=kind, help=text, action="append" if several else "store")


def flag_of(name: str) -> str:
    """Return an option's flag."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


_FLAGS = {"json_file": "--json", "only_parts": "--only"}
"""Flags of options whose plain names are methods of every config."""
_KINDS = {
    "<class 'int'>": "N",
    "<class 'float'>": "X",
    "float | None": "X",
    "<class 'pathlib.Path'>": "FILE",
    "pathlib.Path | None": "FILE",
    "str | None": "TEXT",
    "<class 'str'>": "TEXT",
}


def _element(annotation: Any) -> Any:
    """Return the type of one value, where an option takes several, without its checks."""
    while get_origin(annotation) in (tuple, Annotated):
        annotation = get_args(annotation)[0]
    return annotation


def _choices(annotation: Any) -> str:
    """Return ``a|b`` for a `Literal`, else nothing."""
    values = getattr(annotation, "__args__", ())
    return "|".join(values) if values and all(isinstance(value, str) for value in values) else ""


def _parse(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, Any]:
    actions = [action for action in parser._actions if action.option_strings]  # noqa: SLF001 - no public list
    flags = [flag for action in actions for flag in action.option_strings]
    valued = [flag for action in actions if action.nargs is None for flag in action.option_strings]
    values, unknown = parser.parse_known_args(_with_dashes(given, valued, flags))
    if unknown:
        first = unknown[0].partition("=")[0]
        raise ConfigError(
            f"{parser.prog}: unknown option {first!r}{did_you_mean(first, flags)}; see {parser.prog} --help"
        )
    return vars(values)


def _with_dashes(given: list[str], valued: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Join a flag with a value that begins with a dash, such as a text, which argparse would take for a flag."""
    joined: list[str] = []
    for word in given:
        if joined and joined[-1] in valued and word.startswith("-") and word.partition("=")[0] not in flags:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _from_file(path: str | None, config: type[Config]) -> dict[str, Any]:
    if path is None:
        return {}
    values = read_toml(Path(path))
    stand_ins = {name: "x" for name, info in config.model_fields.items() if info.is_required()}
    config.parse(stand_ins | values, source=path) if values else None
    return {key.replace("-", "_"): value for key, value in values.items()}


def _run_report(given: list[str]) -> int:
    parser = _Parser(prog="headwater report", allow_abbrev=False)
    parser.add_argument("folder", metavar="DIR", help="a folder with stages, or one stage's folder")
    parser.add_argument("--out", metavar="FILE", help="the page to write (default: DIR/report.html)")
    values = _parse(parser, given)
    from headwater.report import write_report

    out = Path(values["out"]) if values["out"] else None
    _print(f"report: {write_report(Path(values['folder']), out)}")
    return 0


def _add_journey_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="where the stages go (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted journey")
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=0,
        help="stages that run at once, each with one thread; 0 takes the number of cores (default: 0)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and the result")


def _run_journey(given: list[str]) -> int:
    parser = _Parser(prog="headwater run", allow_abbrev=False, description="Run the stages of a TOML file.")
    parser.add_argument("journey", metavar="JOURNEY.toml")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change an option: of all stages (seed=1) or of one (movies.epochs=2)",
    )
    _add_journey_flags(parser)
    values = _parse(parser, given)
    from headwater.journey import read_journey

    return _travel(read_journey(Path(values["journey"]), values["set"]), values)


def _run_demo(given: list[str]) -> int:
    parser = _Parser(prog="headwater demo", allow_abbrev=False, description="Run the whole journey on real reviews.")
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="of the reviews (default: en)")
    parser.add_argument("--quick", action="store_true", help="smaller models, fewer stages: a minute or so")
    _add_journey_flags(parser)
    values = _parse(parser, given)
    from headwater.journey import demo_journey

    return _travel(demo_journey(values["language"], quick=values["quick"]), values)


def _travel(journey: Any, values: dict[str, Any]) -> int:
    settle()
    from headwater.journey import run_journey
    from headwater.report import write_report

    out = Path(values["out"] or Path("runs") / journey.name)
    run_journey(journey, out, resume=values["resume"], jobs=values["jobs"], quiet=values["quiet"])
    _print(f"report: {write_report(out)}")
    return 0


def _print_stage(out: Path) -> None:
    from headwater.records import StageRecord

    record = StageRecord.load(out)
    for where, figures in {**record.metrics, **record.baselines, **record.controls}.items():
        _print(f"{where:<28} " + _figures(figures))
    if record.privacy:
        _print(f"{'privacy':<28} epsilon {record.privacy.epsilon:.3g} at delta {record.privacy.delta:.1e}")
        _print(record.privacy.note)
    for name, size in record.sizes.items():
        _print(f"{name:<28} {size:,} bytes")
    for note in record.notes:
        _print(note)
    _print(f"{record.verb} done in {record.wall_seconds:.1f} s: {out}")


def _figures(figures: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.0f}" if name == "n" else f"{name} {value:.4g}" for name, value in figures.items())


def _print_figures(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, dict):
            _print(f"{name}: {_figures(value)}")
        else:
            _print(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")


def _print_record(record: Record) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(record, markup=False)
    _print("\n".join(line.rstrip() for line in capture.get().splitlines()))


def _print(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - results go to standard output


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - errors go to standard error
