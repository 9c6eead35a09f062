"""Recurrent layers in C++: ragged batches without padding, for the instruction set that the processor has.

The kernels know neither torch nor Python: raw pointers, one build for many versions of both. Where they were not built,
the cells run in torch.
"""

from headwater.native.library import LEVELS, OFF, SWITCH, best_level, level, product, usable, using, why
from headwater.native.packing import Packing
from headwater.native.pooling import pool_packed
from headwater.native.recurrent import (
    KINDS,
    GateGradients,
    RecurrentLayer,
    keep_gate_gradients,
    keeps_gate_gradients,
)
from headwater.native.softmax import linear_cross_entropy
from headwater.native.step import Steps

__all__ = [
    "KINDS",
    "LEVELS",
    "OFF",
    "SWITCH",
    "GateGradients",
    "Packing",
    "RecurrentLayer",
    "Steps",
    "best_level",
    "keep_gate_gradients",
    "keeps_gate_gradients",
    "level",
    "linear_cross_entropy",
    "pool_packed",
    "product",
    "usable",
    "using",
    "why",
]
