"""Names to objects: a family's own table first, then entry points of other packages.

A family is an open folder with one explicit table of strings, such as ``"lstm": "headwater.cells.gated:LSTM"``.
Nothing registers itself on import. Another package joins by an entry point in the group of the same name
(``headwater.cells``); in Python one just passes the object.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

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
    if name in table:
        module, _, attribute = table[name].partition(":")
        return getattr(import_module(module), attribute)
    outside = entry_points(group=family)
    if name in outside.names:
        return outside[name].load()
    known = [*table, *outside.names]
    kind = family.rpartition(".")[2].replace("_", " ")
    raise ConfigError(f"unknown name {name!r} among the {kind}{did_you_mean(name, known)}; known: {', '.join(known)}")
