"""A round of 100 clients out of few and out of very many: seconds and memory, each population in a process of its own.

    python benchmarks/population.py --out runs/population --clients 1000 1000000

The clients' rows are generated into a store once and kept in the folder. What the last population takes more than the
first is what grows with it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from headwater.checkpoint import ModelConfig
from headwater.data.examples import Examples
from headwater.features.text import TextOptions
from headwater.federated.aggregators import WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.protocols import FederatedAlgorithm
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.federated.store import ClientStore, write_store
from headwater.model import DropoutOptions, EncoderOptions
from headwater.weights import weights_of

COHORT, WARM_UP, ROWS, VOCABULARY = 100, 3, 4, 2000


def clients(count: int) -> Iterator[tuple[str, Examples]]:
    """Yield clients of four rows of 8 to 24 tokens, of a thousand kinds."""
    rng = np.random.default_rng(0)
    kinds = [
        Examples([rng.integers(4, VOCABULARY, rng.integers(8, 25)) for _ in range(ROWS)], rng.integers(2, size=ROWS))
        for _ in range(1000)
    ]
    for number in range(count):
        yield f"client-{number:08d}", kinds[number % len(kinds)]


def measure(path: Path, rounds: int) -> dict[str, float]:
    """Return the median seconds of a round, those to open it, and MiB resident, with and without mapped files."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderOptions(embedding_size=32, hidden_size=64),
        vocabulary_size=VOCABULARY,
        dropout=DropoutOptions(),
        featurizer=TextOptions(),
        task={"name": "classification", "labels": ("no", "yes"), "pooling": "concat"},
    )
    model = config.build()
    began = time.perf_counter()
    store = ClientStore(path)
    opened = time.perf_counter() - began
    method = FederatedAlgorithm(
        aggregator=WeightedMean(),
        server_optimizer=ServerSGD(1.0, 0.9),
        sampler=Uniform(COHORT / len(store), 0),
    )
    ends = [time.perf_counter()]

    def note_end(_: FederationState) -> None:
        ends.append(time.perf_counter())

    with LocalCohort(store, LocalTraining(model, config.make_task(), 1, ROWS, 0.3)) as cohort:
        state, stopping = FederationState(weights_of(model)), Stopping(WARM_UP + rounds)
        run_rounds(method, cohort, state, stopping, lambda _: {}, seed=0, after_round=note_end)
    seconds = np.diff(ends)[WARM_UP:]
    memory = psutil.Process().memory_info()
    return {
        "clients": len(store),
        "opened": opened,
        "round": statistics.median(seconds),
        "resident": memory.rss / 2**20,
        "own": (memory.rss - memory.shared) / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    found = []
    for count in given.clients:
        path = given.out / f"{count}.arrow"
        if given.measure:
            print(json.dumps(measure(path, given.rounds)))
            return
        if not path.exists():
            write_store(path, clients(count))
        command = [sys.executable, __file__, "--measure", "--out", str(given.out), "--clients", str(count)]
        made = subprocess.run([*command, "--rounds", str(given.rounds)], check=True, capture_output=True, text=True)
        one = json.loads(made.stdout)
        found.append(one)
        print(
            f"{one['clients']:>9,} clients: opened in {1000 * one['opened']:.1f} ms, "
            f"{1000 * one['round']:.0f} ms a round of {COHORT}, {one['resident']:.0f} MiB resident, "
            f"{one['own']:.0f} MiB without mapped files"
        )
    first, last = found[0], found[-1]
    ratios = ", ".join(f"{name} {last[name] / first[name]:.2f}" for name in ("round", "resident", "own"))
    print(f"the last over the first: {ratios}")


if __name__ == "__main__":
    main()
