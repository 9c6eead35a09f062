"""How long one call takes, beside other runtimes in the same process."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from headwater.features.featurizer import Featurizer
from headwater.inference import Runner
from headwater.records import Latency

_LENGTHS = (20, 100)
_WARM_UP, _CALLS = 5, 60


def measure(runners: Mapping[str, Runner], featurizer: Featurizer, *, threads: int) -> list[Latency]:
    """Time single rows of 20 and of 100 steps.

    The runners take turns, call by call, so that whatever else the machine does slows all of them alike:
    ratios within the result can be compared.

    Args:
        runners: What to time, by name.
        featurizer: Draws the rows.
        threads: How many threads the runners were opened with, for the record.
    """
    rng = np.random.default_rng(0)
    rows = []
    for length in _LENGTHS:
        row, length_1 = featurizer.draw(rng, 1, length), np.array([length])
        taken: dict[str, list[float]] = {name: [] for name in runners}
        for call in range(_WARM_UP + _CALLS):
            for name, run in runners.items():
                start = time.perf_counter()
                run(row, length_1)
                if call >= _WARM_UP:
                    taken[name].append(1e6 * (time.perf_counter() - start))
        for name, times in taken.items():
            median, p90 = np.percentile(times, [50, 90])
            rows.append(
                Latency(
                    runtime=name,
                    batch=1,
                    length=length,
                    median_us=float(median),
                    p90_us=float(p90),
                    threads=threads,
                )
            )
    return rows
