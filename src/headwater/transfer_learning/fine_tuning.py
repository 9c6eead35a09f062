"""The verb `fine-tune`: a transfer in one call. What can be chosen is chosen; each step is shown as a command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from headwater.checkpoint import Checkpoint
from headwater.config import DataOptions, RunOptions
from headwater.features.numeric import WindowOptions
from headwater.files import output_errors
from headwater.fitting import Splits, read_splits, with_epochs
from headwater.pretrained import open_checkpoint
from headwater.progress import Progress
from headwater.records import StageRecord
from headwater.stage import finished
from headwater.trainer import TrainOptions
from headwater.transfer_learning.job import feature_options, needs_new_input
from headwater.transfer_learning.language_model import LANGUAGE_MODELING, has_decoder
from headwater.transfer_learning.options import AUTO, TransferOptions
from headwater.transfer_learning.verb import transfer

_AFTER_THAWING = 3
"""Epochs, at least, in which all layers learn."""
_NOT_SHOWN = {"resume", "quiet"}
_WINDOW = 70
"""Steps that a language model goes back to learn where its source says nothing: those of AWD-LSTM."""


class FineTuneOptions(WindowOptions, DataOptions, RunOptions):
    """Options of `fine-tune`. Whoever wants others changes the commands that it shows."""

    control: bool = True
    """Train the same from scratch too, both for three seeds, and say what was gained: five further trainings."""
    least_text: Annotated[int, Field(ge=0)] = 50_000
    """A language model learns the training rows' text before their labels, into the folder OUT-language-model, if that
    has at least so many tokens (about those of TREC-6, the shortest text that Howard and Ruder 2018 do it with)."""


def fine_tune(source: Checkpoint | str | Path, *, data: str | Path, out: str | Path, **others: Any) -> Checkpoint:
    """Fine-tune a source model on labelled rows, with everything chosen that can be, and say what it gained.

    Args:
        source: A checkpoint, its folder, ``pretrained:NAME`` or ``hf:OWNER/NAME``.
        data: The labelled rows.
        out: The folder to write.
        others: Other fields of `FineTuneOptions`, such as `test`.

    Returns:
        The target's checkpoint, as written to `out`; what was chosen and gained stands in the notes of its record.

    Raises:
        HeadwaterError: The source, the data, the options or the output folder can't be used.
    """
    given = {name: str(value) if isinstance(value, Path) else value for name, value in others.items()}
    return run_steps(source, FineTuneOptions.parse({"data": str(data), "out": out} | given))


def run_steps(source: Checkpoint | str | Path, options: FineTuneOptions) -> Checkpoint:
    """Carry out the steps of `plan`, each shown before it begins; at last show what makes the same model alone."""
    with output_errors(options.out):
        finished(options)  # what can't be written is said before the first step
    made = source if isinstance(source, Checkpoint) else open_checkpoint(str(source))
    place = str(made.path or "SOURCE") if isinstance(source, Checkpoint) else str(source)
    progress = Progress(f"fine-tune {options.out.name}", quiet=options.quiet)
    if not has_decoder(made):
        for note in options.ignored({"least_text": "with a language model as CHECKPOINT"}):
            progress.note(note)
    steps = plan(made, options)
    for number, step in enumerate(steps, 1):
        progress.note(f"step {number} of {len(steps)}: {command(place, step)}")
        start, place, made = place, str(step.out), transfer(made, step)
    chosen = {"method": StageRecord.load(options.out).method, "control": False}
    progress.note(f"the same model without trials and twins: {command(start, steps[-1].model_copy(update=chosen))}")
    return made


def plan(source: Checkpoint, options: FineTuneOptions) -> list[TransferOptions]:
    """Return the steps, each a transfer that starts from what the one before it has made.

    The method is the choice of `--method auto`, the rate that of the learning-rate finder, the epochs those of the
    number of rows, but enough for all layers to thaw. A head that is new is random, and the layers below thaw one by
    one so that it doesn't spoil them; one that is kept needs no such care.

    A language model learns the target's own text first, in windows as long as its own, with all layers at once (Howard
    and Ruder 2018, arXiv:1801.06146, section 3.2, who thaw one by one for the classifier alone), unless that is short.
    """
    splits = read_splits(options, options.seed, features=feature_options(source, options))
    same_head = source.labels == splits.labels and not needs_new_input(source, splits, options)
    groups = source.config.encoder.layers + 2  # beside the layers the head and the embedding, one more each epoch
    chosen: dict[str, Any] = {
        "method": AUTO,
        "lr": "auto",
        "epochs": max(with_epochs(TrainOptions(), len(splits.train)).epochs, groups + _AFTER_THAWING),
        "unfreeze": "at_once" if same_head else "gradual",
    }
    given = options.model_dump(exclude={"least_text"})
    last = TransferOptions.parse(given | chosen)
    if not _is_worth_reading(source, splits, options):
        return [last]
    reading = {
        "task": LANGUAGE_MODELING,
        "bptt": source.config.task.get("bptt") or _WINDOW,
        "lr": "auto",
        "unfreeze": "at_once",
        "out": options.out.with_name(f"{options.out.name}-language-model"),
    }
    return [TransferOptions.parse({k: v for k, v in given.items() if k != "control"} | reading), last]


def _is_worth_reading(source: Checkpoint, splits: Splits, options: FineTuneOptions) -> bool:
    """Return whether the source is a language model, and the text that it would learn is long enough."""
    if not has_decoder(source) or options.values is not None:
        return False
    return sum(map(len, source.featurizer.encode_all(splits.train.texts))) >= options.least_text


def command(source: str, options: TransferOptions) -> str:
    """Return the command line of a transfer: the options that it needs, and those that aren't at their defaults."""
    words = ["headwater", "transfer", source]
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if name in _NOT_SHOWN or (value == field.default and not field.is_required()):
            continue
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)
