"""Recurrent layers in C++: ragged batches without padding, for the instruction set that the processor has.

The kernels know neither torch nor Python: raw pointers, one build for many versions of both. Where they were not built,
the cells run in torch.
"""

from headwater.native.library import LEVELS, OFF, SWITCH, best_level, level, product, using, why
from headwater.native.packing import Packing
from headwater.native.recurrent import KINDS, GateGradients, RecurrentLayer, keep_gate_gradients

__all__ = [
    "KINDS",
    "LEVELS",
    "OFF",
    "SWITCH",
    "GateGradients",
    "Packing",
    "RecurrentLayer",
    "best_level",
    "keep_gate_gradients",
    "level",
    "product",
    "using",
    "why",
]
