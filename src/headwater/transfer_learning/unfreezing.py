"""When each layer learns in fine-tuning: the epochs, counted from 0, of each layer from the head down."""

from __future__ import annotations

from collections.abc import Container

from headwater.errors import ConfigError


def at_once(layers: int, epochs: int) -> list[Container[int]]:
    """All layers learn from the first epoch on."""
    return [range(epochs)] * layers


def gradual(layers: int, epochs: int) -> list[Container[int]]:
    """The head learns from the first epoch on; each layer below joins an epoch later.

    Howard and Ruder 2018, arXiv:1801.06146, section 3.3.
    """
    return [range(depth, epochs) for depth in range(layers)]


def chain_thaw(layers: int, epochs: int) -> list[Container[int]]:
    """The head alone, then each layer alone from the bottom up, then all; each phase takes as many epochs.

    Felbo et al. 2017, arXiv:1708.00524, section 3.3, where each phase goes on until it no longer helps.

    Raises:
        ConfigError: There are fewer epochs than phases.
    """
    if layers == 1:
        return at_once(layers, epochs)
    each = epochs // (layers + 1)
    if not each:
        raise ConfigError(
            f"unfreeze = 'chain_thaw' trains {layers} layers one by one, then all: give it at least "
            f"--epochs {layers + 1}, not {epochs}"
        )
    order = [0, *reversed(range(1, layers))]
    alone = {layer: range(turn * each, (turn + 1) * each) for turn, layer in enumerate(order)}
    return [{*alone[layer], *range(layers * each, epochs)} for layer in range(layers)]


def probe_first(layers: int, epochs: int, share: float) -> list[Container[int]]:
    """The head alone for a share of the epochs, at least one, then everything: linear probing, then fine-tuning.

    Kumar et al. 2022, arXiv:2202.10054: a head that is still random would distort the features below it.

    Raises:
        ConfigError: There is a single epoch.
    """
    if epochs < 2:
        raise ConfigError("unfreeze = 'probe_first' trains the head alone, then everything: give it --epochs 2 or more")
    alone = min(max(1, round(share * epochs)), epochs - 1)
    return [range(epochs), *[range(alone, epochs)] * (layers - 1)]
