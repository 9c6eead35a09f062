"""AWD-LSTM's layers under the names that fastai gives them: each is a module of one layer.

Of the second one ``rnns.1.module.weight_ih_l0``, and ``rnns.1.weight_hh_l0_raw`` for the recurrent weights, which stand
apart because some are dropped in each step of training; older versions keep what was left of them as
``rnns.1.module.weight_hh_l0`` too. Source: fastai/text/models/awdlstm.py.
"""

from __future__ import annotations

import re

from headwater.errors import CheckpointError
from headwater.weights import Weights

_LAYER = re.compile(
    r"(?P<stack>(?:.*\.)?)(?P<layer>\d{1,3})\.(?:module\.)?"
    r"(?P<what>(?:weight|bias)_[ih]h_l)0(?P<back>(?:_reverse)?)(?P<raw>(?:_raw)?)",
    re.DOTALL,
)


def as_one_module(tensors: Weights) -> Weights:
    """Return the tensors, those of such layers under the names of one torch module: ``rnns.weight_ih_l1``.

    Raises:
        CheckpointError: One of these names is taken.
    """
    found = {name: match for name in tensors if (match := _LAYER.fullmatch(name))}
    stacks = {match["stack"] for match in found.values() if match["raw"]}
    made: Weights = {}
    for name, value in tensors.items():
        match = found.get(name)
        if match is None or match["stack"] not in stacks:
            made[name] = value
            continue
        new = "".join(match[part] for part in ("stack", "what", "layer", "back"))
        if new in tensors:
            raise CheckpointError(f"{name!r} has a twin, {new!r}, whose name means the same: remove one of them")
        if match["raw"] or new not in made:
            made[new] = value
    return made
