"""What a run of clipped, sampled and noised rounds spends, by the library dp-accounting.

The unit is the client: the guarantee compares a population with the same population without any one client
(add or remove one), for everybody who sees the model after every round.
"""

from __future__ import annotations

import math
from typing import Any

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from headwater.errors import ConfigError
from headwater.records import Privacy

_ORDERS = [*range(2, 33), 48, 64, 128]
"""Whole orders only: the series for fractional ones doesn't converge at small noise."""
_LEAST_NOISE = 0.1
"""Less is not looked for: the accountant becomes slow, and the noise no longer hides anything."""
_FINEST, _COARSEST, _CELLS = 1e-4, 1e-3, 2000
"""Widths of the grid that privacy losses are rounded up to, and how many of them epsilon should span in a search."""
ACCOUNTANT = "dp-accounting, privacy loss distributions, Poisson-sampled Gaussian"


def epsilon_spent(
    *, noise_multiplier: float, sampling_rate: float, rounds: int, delta: float, grid: float = _FINEST
) -> float:
    """Return epsilon after some rounds.

    Args:
        noise_multiplier: Standard deviation of the noise over the clipping norm.
        sampling_rate: Chance of each client to take part in a round, independently.
        rounds: How many.
        delta: The chance that the guarantee doesn't hold.
        grid: Privacy losses are rounded up to multiples of this: a coarser grid is faster and never gives less.

    References:
        McMahan et al. 2018, arXiv:1710.06963 (client-level privacy); Koskela et al. 2020, arXiv:1906.03049, and
        Doroshenko et al. 2022, arXiv:2207.04380 (privacy loss distributions).
    """
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    accountant = PLDAccountant(value_discretization_interval=grid)
    accountant.compose(_event(noise_multiplier, sampling_rate), rounds)
    return float(accountant.get_epsilon(delta))


def epsilon_by_round(privacy: Privacy, *, most: int = 15) -> dict[int, float]:
    """Return epsilon after some of the rounds, spread evenly, the last among them; for the course, not the promise.

    Not after each, since every one of them is composed anew; on a coarser grid than the promise, so rather above it.

    Args:
        privacy: What a federation promises over all its rounds.
        most: How many rounds at most.
    """
    numbers = sorted({-(-privacy.rounds * part // most) for part in range(1, most + 1)})
    grid = _grid(privacy.epsilon)
    return {
        number: epsilon_spent(
            noise_multiplier=privacy.noise_multiplier,
            sampling_rate=privacy.sampling_rate,
            rounds=number,
            delta=privacy.delta,
            grid=grid,
        )
        for number in numbers
    }


def noise_for(epsilon: float, *, sampling_rate: float, rounds: int, delta: float) -> float:
    """Return the smallest noise multiplier (to a hundredth) that keeps all rounds within epsilon.

    The search goes over a grid that is as fine as epsilon asks for: what it finds keeps within epsilon on a finer one.

    Raises:
        ConfigError: No usable amount of noise does.
    """
    grid = _grid(epsilon)

    def spent(noise: float) -> float:
        return epsilon_spent(noise_multiplier=noise, sampling_rate=sampling_rate, rounds=rounds, delta=delta, grid=grid)

    def calibrate(accountant: Any, bracket: Any, tolerance: float) -> float:
        return float(
            dp_accounting.calibrate_dp_mechanism(
                accountant,
                lambda noise: dp_accounting.SelfComposedDpEvent(_event(noise, sampling_rate), rounds),
                epsilon,
                delta,
                bracket,
                tol=tolerance,
            )
        )

    try:
        # Renyi accounting is fast and never too low; the tight accountant then needs only a few looks below it.
        enough = calibrate(lambda: RdpAccountant(_ORDERS), dp_accounting.LowerEndpointAndGuess(0.05, 2.0), 1e-2)
        low = 0.6 * enough
        while low > _LEAST_NOISE and spent(low) <= epsilon:
            enough, low = low, low / 2
        if low <= _LEAST_NOISE:
            return enough
        bracket = dp_accounting.ExplicitBracketInterval(low, enough)
        return calibrate(lambda: PLDAccountant(value_discretization_interval=grid), bracket, 1e-2)
    except Exception as error:  # the library raises several kinds
        raise ConfigError(
            f"epsilon = {epsilon}: no amount of noise keeps {rounds} rounds at a sampling rate of {sampling_rate} "
            f"within it (delta {delta:.1e}): raise --epsilon, or lower --rounds or the share of clients in a round"
        ) from error


def _grid(epsilon: float) -> float:
    return min(max(epsilon / _CELLS, _FINEST), _COARSEST)


def _event(noise_multiplier: float, sampling_rate: float) -> dp_accounting.DpEvent:
    return dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))
