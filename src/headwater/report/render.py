"""From records to one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from headwater.errors import OutputError
from headwater.files import write_atomic
from headwater.records import StageRecord
from headwater.report import formatting as fmt
from headwater.report.collect import find_records
from headwater.report.headline import headline_facts
from headwater.report.sections import build_sections

REPORT_FILE = "report.html"


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write one HTML file from the records of all stages in a folder and below it.

    The file holds its own style, script and drawings, and forbids itself the network. Equal records give
    equal bytes.

    Args:
        folder: A journey's folder, or one stage's.
        out: The file to write; `report.html` in the folder unless given.

    Returns:
        The file.

    Raises:
        DataError: The folder is missing.
        CheckpointError: It holds no record, or one that can't be read.
        OutputError: The file can't be written.
    """
    folder = Path(folder)
    path = folder / REPORT_FILE if out is None else Path(out)
    html = render(find_records(folder))
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give a file's name, such as {path / REPORT_FILE}")
    write_atomic(path, html)
    return path


def render(records: list[StageRecord]) -> str:
    """Return the report as HTML."""
    headline = headline_facts(records)
    template = environment().get_template("report.html")
    return template.render(headline=headline, sections=build_sections(records), fmt=fmt)


def environment() -> Environment:
    """Return the templates; everything that a record says is escaped, and a missing name is an error."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
