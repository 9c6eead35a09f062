"""Names to objects: a family's own table first, then entry points of other packages.

A family is an open folder with one explicit table of strings, such as ``"lstm": "headwater.cells.gated:LSTM"``.
Nothing registers itself on import. Another package joins by an entry point in the group of the same name
(``headwater.cells``); in Python one just passes the object.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pydantic import AfterValidator

from headwater.errors import ConfigError, did_you_mean


def lookup(family: str, table: Mapping[str, str], name: str) -> Any:
    """Return the object that a name stands for.

    Args:
        family: The table's name, such as ``"headwater.cells"``: also the entry-point group.
        table: Names to ``"module:attribute"``.
        name: What the user wrote.

    Raises:
        ConfigError: Neither the table nor an entry point knows the name.
    """
    check_name(family, table, name)
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    return entry_points(group=family)[name].load()


def made(family: str, table: Mapping[str, str], name: str, options: object, **given: Any) -> Any:
    """Return a new member of a family of dataclasses.

    A field that its constructor takes is what is `given` under its name, else the option of that name, else its
    default: so an option has an effect wherever a member has a field for it. One that is None was left out.

    Raises:
        ConfigError: Nothing has the name.
    """
    cls = lookup(family, table, name)
    values = {field.name: given.get(field.name, getattr(options, field.name, None)) for field in init_fields(cls)}
    return cls(**{name: value for name, value in values.items() if value is not None})


def init_fields(cls: Any) -> list[dataclasses.Field[Any]]:
    """Return the public fields that a dataclass's constructor takes; none of another class."""
    found = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    return [field for field in found if field.init and not field.name.startswith("_")]


def read_by(family: str, table: Mapping[str, str], *names: str) -> set[str]:
    """Return the options that members of a family of dataclasses read (see `made`)."""
    return {field.name for name in names for field in init_fields(lookup(family, table, name))}


def check_name(family: str, table: Mapping[str, str], name: str, others: Sequence[str] = ()) -> str:
    """Return the name if the table or an entry point knows it, or if it is one of `others`; nothing is imported.

    Raises:
        ConfigError: None of them has it.
    """
    known = [*others, *table, *sorted(entry_points(group=family).names)]
    if name not in known:
        kind = family.rpartition(".")[2].replace("_", " ")
        close = did_you_mean(name, known)
        raise ConfigError(f"unknown name {name!r} among the {kind}{close}; known: {', '.join(known)}")
    return name


def name_in(family: str, table: Mapping[str, str], *others: str) -> AfterValidator:
    """Return the check of an option that names one of a family, or is one of `others`, for ``Annotated[str, ...]``."""
    return AfterValidator(functools.partial(check_name, family, table, others=others))
