"""Bottleneck adapters (Houlsby et al. 2019, arXiv:1902.00751).

Shapes: F features, M units of the bottleneck.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Adapter(nn.Module):
    """Features, and what a bottleneck makes of them at each step: x + up(relu(down(x))).

    `up` begins at zero (the paper, section 2, draws it near zero): the features then pass as they are, and the adapter
    still learns.

    Args:
        features: F.
        units: M.
    """

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.down = nn.Linear(features, units)
        self.up = nn.Linear(units, features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def bottleneck(self, x: Tensor) -> Tensor:
        """Return the bottleneck's units (..., M) for features (..., F)."""
        return F.relu(self.down(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted features (..., F)."""
        adapted: Tensor = x + self.up(self.bottleneck(x))
        return adapted


def units_of(number: int) -> str:
    """Return the name of the units of the bottleneck behind a layer; see `headwater.axes`."""
    return f"{number}.adapter"
