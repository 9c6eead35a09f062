"""Layers of several widths made one width, so that an encoder can hold them.

Shapes: G gates, H units of a layer, M those of the widest, D inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from headwater.errors import CheckpointError
from headwater.weights import Weights

MOST_GROWTH = 4
"""How many times as large as in their file the layers may become; those of AWD-LSTM become half as large again."""


def equally_wide(layers: Sequence[Sequence[Weights]]) -> list[list[Weights]]:
    """Return layers as wide as the widest, which compute the same.

    A unit whose weights and biases are zero stays at zero in each of Headwater's cells: its candidate state is tanh or
    ReLU of zero, and the old state of which the gates keep something was zero too. So the units that are added say
    nothing to those above.

    Args:
        layers: The first one first, each reads the states of the one below; of each the tensors by direction.

    Raises:
        CheckpointError: They would become many times as large.
    """
    widths = [directions[0]["weight_hh"].shape[1] for directions in layers]
    most = max(widths)
    numbers = sum(value.numel() for directions in layers for tensors in directions for value in tensors.values())
    gates = len(layers[0][0]["weight_hh"]) // widths[0]
    inputs = layers[0][0]["weight_ih"].shape[1]
    count = len(layers[0])
    if count * gates * most * (inputs + most + (len(layers) - 1) * (count + 1) * most) > MOST_GROWTH * numbers:
        raise CheckpointError(
            f"the layers have {', '.join(map(str, widths))} units: an encoder has one number of them, and made as wide "
            f"as the widest they would be more than {MOST_GROWTH} times as large; name a part of them with --prefix"
        )
    return [
        [_widened(tensors, own, below, most) for tensors in directions]
        for directions, own, below in zip(layers, widths, [0, *widths], strict=False)
    ]


def _widened(tensors: Weights, own: int, below: int, most: int) -> Weights:
    weight_ih = _more_units(tensors["weight_ih"], own, most)
    return {
        "weight_ih": _more_inputs(weight_ih, below, most) if below else weight_ih,
        "weight_hh": _more_inputs(_more_units(tensors["weight_hh"], own, most), own, most),
    } | {name: _more_units(tensors[name].unsqueeze(1), own, most).squeeze(1) for name in ("bias_ih", "bias_hh")}


def _more_units(weight_GH_D: Tensor, own: int, most: int) -> Tensor:
    """Return (G*M, D) of (G*H, D)."""
    by_gate = weight_GH_D.reshape(-1, own, weight_GH_D.shape[1])
    return F.pad(by_gate, (0, 0, 0, most - own)).flatten(0, 1)


def _more_inputs(weight_GM_D: Tensor, below: int, most: int) -> Tensor:
    """Return the columns of the states of a layer below that has become as wide, in each of its directions."""
    by_direction = weight_GM_D.reshape(len(weight_GM_D), -1, below)
    return F.pad(by_direction, (0, most - below)).flatten(1, 2)
