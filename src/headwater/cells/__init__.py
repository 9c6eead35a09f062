"""Recurrent cells: one layer in one direction. A new cell is a class here and a row in the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headwater.registry import lookup

if TYPE_CHECKING:
    from headwater.cells.base import Cell

CELLS = {
    "rnn": "headwater.cells.elman:SimpleRNN",
    "rnn_relu": "headwater.cells.elman:ReLURNN",
    "lstm": "headwater.cells.lstm:LSTM",
    "gru": "headwater.cells.gru:GRU",
    "gru_reset_before": "headwater.cells.gru:ResetBeforeGRU",
}


def cell_class(name: str) -> type[Cell]:
    """Return the cell class of a name in the table or of an entry point in ``headwater.cells``."""
    found: type[Cell] = lookup("headwater.cells", CELLS, name)
    return found
