"""Every federated method on one workload beside plain federated averaging: a table in Markdown.

    python federated_methods.py trec6/train.jsonl.gz trec6/test.jsonl.gz OUT [NAME ...]

The questions of trec6 (six kinds) are dealt to 40 clients, mostly a kind or two each (Dirichlet, alpha 0.3); eight of
them train in a round. All begin with the same new model. A run that is complete is kept, so names can be added.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

from headwater import Checkpoint, FederateOptions, PretrainOptions, federate, pretrain
from headwater.records import StageRecord

SEEDS = (0, 1, 2)
COMMON: dict[str, Any] = {
    "fresh": True,
    "clients": 40,
    "alpha": 0.3,
    "participation": 0.2,
    "rounds": 60,
    "local_epochs": 2,
    "batch_size": 16,
    "client_lr": 1.0,
    "server_momentum": 0.0,
    "evaluate_every": 10,
    "controls": False,
    "processes": 1,
    "quiet": True,
    "device": "cpu",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "iid": {"partition": "iid"},
    "dirichlet 0.1": {"alpha": 0.1},
    "fedprox 0.1": {"method": "fedprox", "prox": 0.1},
    "scaffold": {"method": "scaffold", "aggregator": "mean"},
    "fednova": {"method": "fednova"},
    "feddyn 0.1": {"method": "feddyn", "aggregator": "mean"},
    "moon": {"method": "moon"},
    "mean": {"aggregator": "mean"},
    "used rows": {"used_rows": True},
    "median": {"aggregator": "median"},
    "trimmed mean": {"aggregator": "trimmed_mean"},
    "geometric median": {"aggregator": "geometric_median"},
    "multi-krum": {"aggregator": "multi_krum"},
    "norm bound": {"aggregator": "norm_bound"},
    "fedavgm": {"server_momentum": 0.9, "server_lr": 0.3},
    "fedadam": {"server_optimizer": "adam", "server_momentum": 0.9},
    "fedyogi": {"server_optimizer": "yogi", "server_momentum": 0.9},
    "fedadagrad": {"server_optimizer": "adagrad"},
    "fedbuff": {"buffer": 8, "concurrency": 16, "speed_spread": 1.0, "aggregator": "mean"},
    "int8": {"codec": "int8"},
    "int4": {"codec": "int4"},
    "ternary": {"codec": "ternary"},
    "sign, feedback": {"codec": "sign", "error_feedback": True},
    "top 1 %, feedback": {"codec": "top_k", "error_feedback": True},
    "top 1 % + int8 + zstd, feedback": {"codec": ["top_k", "int8"], "error_feedback": True, "zstd": 3},
    "low rank 2": {"codec": "low_rank"},
    "rotation, 1 bit": {"codec": "rotation"},
    "int8 both ways": {"codec": "int8", "down_codec": "int8"},
    "fedper": {"personal": "fedper"},
    "fedrep": {"personal": "fedrep"},
    "ditto": {"personal": "ditto"},
    "apfl": {"personal": "apfl"},
    "pfedme": {"personal": "pfedme"},
    "perfedavg": {"personal": "perfedavg"},
    "ifca": {"personal": "ifca"},
}


def main() -> None:
    """Run what is missing, print the table."""
    train, test, out, *names = sys.argv[1:]
    folder = Path(out)
    if not (folder / "source").exists():
        sizes = {"embedding_size": 32, "hidden_size": 32, "min_count": 2, "epochs": 1}
        pretrain(PretrainOptions(data=train, test=test, out=folder / "source", quiet=True, **sizes))
    source = Checkpoint.load(folder / "source")
    print("| setting | accuracy | points over fedavg | KiB up a round |\n| --- | --- | --- | --- |")
    baseline: dict[int, float] = {}
    for name, changes in SETTINGS.items():
        if names and name not in names and name != "fedavg":
            continue
        found = [
            _run(source, {"data": train, "test": test} | changes, folder / f"{name}-{seed}", seed) for seed in SEEDS
        ]
        accuracies = [record.metrics["test"]["accuracy"] for record in found]
        baseline = baseline or dict(zip(SEEDS, accuracies, strict=True))
        over = [100 * (value - baseline[seed]) for seed, value in zip(SEEDS, accuracies, strict=True)]
        up = statistics.mean(row.bytes_up for record in found for row in record.rounds) / 1024
        print(f"| {name} | {_spread(accuracies, '.3f')} | {_spread(over, '+.1f')} | {up:,.0f} |", flush=True)


def _run(source: Checkpoint, changes: dict[str, Any], out: Path, seed: int) -> StageRecord:
    if not out.exists():
        federate(source, FederateOptions(**COMMON | changes, out=out, seed=seed, resume=True))
    return StageRecord.load(out)


def _spread(values: list[float], shape: str) -> str:
    return f"{statistics.mean(values):{shape}} ± {statistics.stdev(values):{shape.lstrip('+')}}"


if __name__ == "__main__":
    main()
