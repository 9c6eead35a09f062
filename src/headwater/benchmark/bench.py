"""The benchmark: this machine's peak, our layers, steps and training beside torch's and ONNX Runtime's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator
from rich.console import Group
from rich.table import Table

from headwater.benchmark.layers import TORCH, layer, memory, products, streaming
from headwater.benchmark.measure import OURS, Machine, Row, one_thread
from headwater.benchmark.roofline import roofline
from headwater.benchmark.shapes import SHAPES
from headwater.benchmark.training import federated_round, training_step
from headwater.config import Config
from headwater.errors import ConfigError, OutputError, did_you_mean
from headwater.files import write_atomic
from headwater.progress import Progress
from headwater.records import Record
from headwater.report import formatting as fmt

_PARTS = (*dict.fromkeys(shape.name.split()[0] for shape in SHAPES), "step", "fit", "round")


def _some_of(known: Sequence[str]) -> AfterValidator:
    """Return the check of an option that names some of these, with commas between."""

    def check(given: str) -> str:
        for name in given.split(","):
            if name not in known:
                raise ConfigError(f"unknown name {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
        return given

    return AfterValidator(check)


class BenchOptions(Config):
    """Options of `bench`."""

    only_parts: Annotated[str, _some_of(_PARTS)] = ",".join(_PARTS)
    """What to measure beside the machine's peaks: layers in training by the names of their shapes (`S` full and
    ragged; `M`, `XS` and `NWP` ragged), a stream's `step`, a trainer's step (`fit`), a federation's `round`."""
    cells: Annotated[str, _some_of(tuple(TORCH))] = ",".join(TORCH)
    """Which cells, with commas between."""
    quick: bool = False
    """Few repeats, and training and rounds with the first cell only: half a minute or less."""
    json_file: Path | None = None
    """Write all repeats and the machine's facts to this file."""
    plot: Path | None = None
    """Draw a roofline plot into this file, a self-contained SVG."""
    quiet: bool = False
    """Show no progress."""


class BenchResult(Record):
    """What was measured."""

    format: Literal["headwater.bench/1"] = "headwater.bench/1"
    machine: Machine
    notes: list[str]
    """What a reader of the figures should know."""
    rows: list[Row]

    def of(self, part: str) -> list[Row]:
        """Return the rows of a part."""
        return [row for row in self.rows if row.part == part]

    def __rich__(self) -> Group:
        """Return the tables for a terminal."""
        tables = [_peak_table(self), _layer_table(self)]
        tables.append(_table("One step of a stream, batch of one (ours: Stream.step)", "µs", 1e6, self.of("step")))
        tables.append(_table("One step of training a small classifier", "ms", 1e3, self.of("fit")))
        tables.append(_table("One simulated federated round", "ms", 1e3, self.of("round")))
        shown = [table for table in tables if table.row_count]
        return Group(*shown, "x: that path's median time over headwater's; above 1, headwater is faster.", *self.notes)


def bench(options: BenchOptions) -> BenchResult:
    """Measure; write the files that the options name.

    Raises:
        OutputError: A file can't be written: said before anything is measured.
    """
    files = [path for path in (options.json_file, options.plot) if path]
    for path in files:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OutputError(f"can't write {path}: give the path of a file in a folder that you may write to")
    machine = Machine.look()
    notes = []
    if machine.load > machine.cores / 2:
        notes.append(f"The machine is busy (load {machine.load} on {machine.cores} cores): these figures mean little.")
    with Progress("bench", quiet=options.quiet) as progress, one_thread():
        for note in notes:
            progress.note(note)
        jobs = list(_jobs(options, machine))
        rows: list[Row] = []
        for number, job in enumerate(jobs):
            progress.advance(number, len(jobs))
            rows += job()
        progress.advance(len(jobs), len(jobs))
    result = BenchResult(machine=machine, notes=[*notes, *(f"Written: {path}" for path in files)], rows=rows)
    if options.json_file:
        write_atomic(options.json_file, result.model_dump_json(indent=1) + "\n")
    if options.plot:
        write_atomic(options.plot, roofline(rows, f"{machine.processor}, one thread; kernels: {machine.kernels}"))
    return result


def _jobs(options: BenchOptions, machine: Machine) -> Iterator[Callable[[], list[Row]]]:
    parts, budget = options.only_parts.split(","), 0.3 if options.quick else 4.0
    yield partial(products, machine, budget)
    yield partial(memory, budget)
    cells = options.cells.split(",")
    for cell in cells:
        for shape in SHAPES:
            if shape.name.split()[0] in parts:
                yield partial(layer, cell, shape, machine, budget)
        if "step" in parts:
            yield partial(streaming, cell, budget)
    for cell in cells[:1] if options.quick else cells:
        if "fit" in parts:
            yield partial(training_step, cell, budget)
        if "round" in parts:
            yield partial(federated_round, cell, budget)


def _peak_table(result: BenchResult) -> Table:
    table = Table(
        "product of two matrices", "precision", "GFLOP/s", title="The machine, one thread", title_justify="left"
    )
    for row in result.of("product"):
        table.add_row(f"{row.path}, {row.case}", row.precision, f"{row.gflops:.0f}")
    for row in result.of("memory"):
        table.add_row("memory (c = a + b)", "", f"{row.gbytes:.0f} GB/s")
    return table


def _layer_table(result: BenchResult) -> Table:
    columns = ("shape", "cell", "precision", "GFLOP/s", "of peak", "torch padded", "torch packed")
    table = Table(*columns, title="Layers, forward and backward", title_justify="left")
    rows = {(row.cell, row.case, row.precision, row.path): row for row in result.of("layer")}
    for (cell, case, precision, path), row in rows.items():
        if path == OURS:
            peak = max(peak.gflops for peak in result.of("product") if peak.precision == precision)
            beside = (rows.get((cell, case, precision, other)) for other in ("torch padded", "torch packed"))
            others = (f"{other.ratio:.2f}x" if other else "" for other in beside)
            table.add_row(case, cell, precision, f"{row.gflops:.1f}", f"{row.gflops / peak:.0%}", *others)
    return table


def _table(title: str, unit: str, scale: float, rows: Sequence[Row]) -> Table:
    paths = list(dict.fromkeys(row.path for row in rows))
    table = Table("cell", *(f"{path}, {unit}" for path in paths), title=title, title_justify="left")
    for cell in dict.fromkeys(row.cell for row in rows):
        figures = (
            fmt.three(scale * row.median_seconds) + (f" ({row.ratio:.2f}x)" if row.path != OURS else "")
            for row in rows
            if row.cell == cell
        )
        table.add_row(cell, *figures)
    return table
