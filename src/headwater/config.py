"""Options: frozen, keyword-only, described where they are declared, checked at birth.

Each verb has one flat config class, put together from the option groups of the parts it uses. The command line,
the journey file and Python all read the same class, so an option exists in all three or in none.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from headwater.errors import ConfigError, did_you_mean

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
"""A share from 0 up to, and without, 1."""
Item = TypeVar("Item")
Several = Annotated[
    tuple[Item, ...], BeforeValidator(lambda given: given if isinstance(given, list | tuple) else (given,))
]
"""One value or more: a flag is repeated, a journey and Python give a value or a list."""

Group = TypeVar("Group", bound="Config")


MOST = 3e38
"""No option's number is larger: it would not fit into float32."""


def one_of(*numbers: int) -> AfterValidator:
    """Return the check that a number is one of these."""

    def check(number: int) -> int:
        if number not in numbers:
            raise ValueError(f"should be {', '.join(map(str, numbers[:-1]))} or {numbers[-1]}")
        return number

    return AfterValidator(check)


class Config(BaseModel):
    """The base of every config: immutable, no unknown keys, the docstring under a field is its help text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _in_reach(cls, value: Any) -> Any:
        if isinstance(value, float) and abs(value) > MOST:
            raise ValueError(f"should be at most {MOST:.0e}")
        return value

    def only(self, group: type[Group]) -> Group:
        """Return one of the option groups that this config is put together from."""
        return group(**{name: getattr(self, name) for name in group.model_fields})

    def unread(self) -> dict[str, str]:
        """Return the options that the others leave without effect, and when they have one: ``"with --epsilon"``."""
        return {}

    def notes(self) -> list[str]:
        """Return a sentence for each option that was given though it has no effect."""
        return self.ignored(self.unread())

    def ignored(self, unread: Mapping[str, str]) -> list[str]:
        """Return a sentence for each of some options without effect that was given."""
        return [
            f"--{name.replace('_', '-')} was ignored: it has an effect {when} only."
            for name, when in unread.items()
            if getattr(self, name) != type(self).model_fields[name].default
        ]

    @classmethod
    def parse(cls, options: Mapping[str, Any], *, source: str = "options") -> Self:
        """Build the config from plain values.

        Args:
            options: Option names (with ``_`` or ``-``) and values.
            source: Where they came from, for messages: a file's name or ``"options"``.

        Raises:
            ConfigError: An option is unknown, missing or has an unusable value.
        """
        values = {key.replace("-", "_"): value for key, value in options.items()}
        for key in values:
            if key not in cls.model_fields:
                raise ConfigError(
                    f"{source}: unknown option {key!r}{did_you_mean(key, cls.model_fields)}; "
                    f"{cls.__name__} knows: {', '.join(sorted(cls.model_fields))}"
                )
        try:
            return cls(**values)
        except ConfigError as error:  # of a check that knows what it refuses, but not where that stood
            raise ConfigError(f"{source}: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else cls.__name__
            if first["type"] == "missing":
                raise ConfigError(f"{source}: the option {name!r} is missing: {describe(cls, name)}") from error
            reason = first["msg"].removeprefix("Value error, ")
            reason = reason[:1].lower() + reason[1:]
            where = "" if name == cls.__name__ else f"{name} = {first['input']!r}: "
            raise ConfigError(f"{source}: {where}{reason}") from error


def describe(config: type[BaseModel], name: str) -> str:
    """Return the first sentence of a field's docstring."""
    field = config.model_fields.get(name)
    return (field.description or "no description").split("\n\n")[0].replace("\n", " ") if field else "unknown"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: It is missing or isn't TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} doesn't exist: give the path of a TOML file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} can't be read as TOML: {error}") from error


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class RunOptions(Config):
    """How a verb runs; the same for all verbs that train."""

    no_result: ClassVar[frozenset[str]] = frozenset({"out", "resume", "quiet", "device", "threads"})
    """Options that do not say what is computed: a run may be resumed with others."""

    out: Path
    """The folder to write; it becomes the checkpoint itself. Must not exist yet, or be empty."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seeds every random choice; the same seed gives the same bits on one machine and thread count."""
    resume: bool = False
    """Continue an interrupted run in the same folder; ends with the same bits as one never interrupted."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU when there is one."""
    threads: Annotated[int, Field(ge=0)] = 1
    """Processor threads for the arithmetic; 0 takes all cores. More than one helps only on an idle machine."""
    quiet: bool = False
    """Print nothing but errors and the result."""


class ValueColumns(Config):
    """Where numbers stand in a file of numeric rows."""

    values: str | None = None
    """Numeric rows in place of text: the columns of their channels, with commas between. With `--id` each line is a
    step and holds a number; else each line is a row and holds the list of its numbers, or in a single column the list
    of its steps, a list of channels each. In an .npz archive arrays are columns, (rows, steps) or (rows, steps,
    channels), with `--id` (all steps,); `*` takes each array as a recording whose label is its name."""
    id: str | None = None
    """The column that says of which row a line is a step, for numeric tables with a step a line."""
    time: str | None = None
    """With `--id`: a column of numbers or dates that must rise from step to step."""
    channels_first: bool = False
    """The lists of lists that `--values` names are channels of steps."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of `values`, in order."""
        return tuple(name.strip() for name in self.values.split(",")) if self.values is not None else ()

    @model_validator(mode="after")
    def _belong_to_values(self) -> Self:
        for name, needed in (("id", "values"), ("time", "id"), ("channels_first", "values")):
            if getattr(self, name) and getattr(self, needed) is None:
                raise ValueError(f"{name} says how numbers are read: add --{needed} with their column")
        return self


class RowOptions(ValueColumns):
    """Where labelled rows are."""

    data: str
    """Training rows: a CSV, TSV, JSON-lines or Parquet file (plain or .gz), or `card:NAME/SPLIT`; numeric ones, see
    `--values`, in an .npz archive too."""
    text: str = "text"
    """The column that holds the text."""
    label: str = "label"
    """The column that holds the label."""


class DataOptions(RowOptions):
    """Which rows to learn from."""

    valid: Annotated[float, Field(gt=0.0, lt=0.9)] = 0.1
    """Share of the training rows held out to choose the best epoch."""
    test: str | None = None
    """Rows that training never sees, for the figures that are reported; without it the held-out share is used."""
    rows: Annotated[int, Field(ge=0)] = 0
    """Use only this many training rows, drawn evenly over the labels; 0 uses all."""
