"""Every federated method on one workload beside plain federated averaging: a table in Markdown.

    python benchmarks/federated_methods.py trec6/train.jsonl.gz trec6/test.jsonl.gz OUT [NAME ...]

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
from headwater.statistics import worst_decile

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
YIN, KRUM, REDDI = "Yin et al. 2018", "Blanchard et al. 2017", "Reddi et al. 2021"
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("FedAvg, McMahan et al. 2017", {"aggregator": "weighted"}),
    "iid": ("", {"partition": "iid"}),
    "dirichlet 0.1": ("", {"alpha": 0.1}),
    "fedprox 0.1": ("FedProx, Li et al. 2020", {"method": "fedprox", "prox": 0.1}),
    "scaffold": ("SCAFFOLD, Karimireddy et al. 2020", {"method": "scaffold", "aggregator": "mean"}),
    "fednova": ("FedNova, Wang et al. 2020", {"method": "fednova"}),
    "feddyn 0.1": ("FedDyn, Acar et al. 2021", {"method": "feddyn", "aggregator": "mean"}),
    "moon": ("MOON, Li, He and Song 2021", {"method": "moon"}),
    "mean": ("clients count alike", {"aggregator": "mean"}),
    "used rows": ("an embedding's row over those that used it", {"used_rows": True}),
    "median": (YIN, {"aggregator": "median"}),
    "trimmed mean": (YIN, {"aggregator": "trimmed_mean"}),
    "geometric median": ("RFA, Pillutla et al. 2022", {"aggregator": "geometric_median"}),
    "multi-krum": (KRUM, {"aggregator": "multi_krum"}),
    "norm bound": ("Sun et al. 2019", {"aggregator": "norm_bound"}),
    "fedavgm": ("Hsu et al. 2019", {"server_momentum": 0.9, "server_lr": 0.3}),
    "fedadam": (REDDI, {"server_optimizer": "adam", "server_momentum": 0.9}),
    "fedyogi": (REDDI, {"server_optimizer": "yogi", "server_momentum": 0.9}),
    "fedadagrad": (REDDI, {"server_optimizer": "adagrad"}),
    "fedbuff": (
        "FedBuff, Nguyen et al. 2022",
        {"buffer": 8, "concurrency": 16, "speed_spread": 1.0, "aggregator": "mean"},
    ),
    "int8": ("QSGD, Alistarh et al. 2017", {"codec": ["int8"]}),
    "int4": ("QSGD", {"codec": ["int4"]}),
    "ternary": ("TernGrad, Wen et al. 2017", {"codec": ["ternary"]}),
    "sign": ("EF-signSGD, Karimireddy et al. 2019", {"codec": ["sign"], "error_feedback": True}),
    "top 1 %": ("Stich et al. 2018", {"codec": ["top_k"], "error_feedback": True}),
    "top 1 %, int8, zstd": ("", {"codec": ["top_k", "int8"], "error_feedback": True, "zstd": 3}),
    "low rank 4": ("PowerSGD, Vogels et al. 2019", {"codec": ["low_rank"]}),
    "rotation, 1 bit": ("DRIVE, EDEN, Vargaftik et al. 2021, 2022", {"codec": ["rotation"]}),
    "int8 both ways": ("", {"codec": ["int8"], "down_codec": "int8"}),
    "fedper": ("Arivazhagan et al. 2019", {"personal": "fedper"}),
    "fedrep": ("Collins et al. 2021", {"personal": "fedrep"}),
    "ditto": ("Li et al. 2021", {"personal": "ditto"}),
    "apfl": ("Deng et al. 2020", {"personal": "apfl"}),
    "pfedme": ("Dinh et al. 2020", {"personal": "pfedme"}),
    "perfedavg": ("Fallah et al. 2020", {"personal": "perfedavg"}),
    "ifca": ("Ghosh et al. 2020", {"personal": "ifca"}),
}


def main() -> None:
    """Run what is missing, print the table."""
    train, test, out, *names = sys.argv[1:]
    folder = Path(out)
    if not (folder / "source").exists():
        sizes = {"embedding_size": 32, "hidden_size": 32, "min_count": 2, "epochs": 1}
        pretrain(PretrainOptions(data=train, test=test, out=folder / "source", quiet=True, **sizes))
    source = Checkpoint.load(folder / "source")
    print("| setting | paper | pieces | accuracy | points over fedavg | worst tenth | KiB up a round |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    baseline: list[float] = []
    for name, (paper, changes) in SETTINGS.items():
        if names and name not in names and name != "fedavg":
            continue
        found = [
            run(source, {"data": train, "test": test} | changes, folder / f"{name}-{seed}", seed) for seed in SEEDS
        ]
        accuracies = [record.metrics["test"]["accuracy"] for record in found]
        baseline = baseline or accuracies
        over = [100 * (value - base) for value, base in zip(accuracies, baseline, strict=True)]
        cells = [name, paper, f"`{flags(changes)}`", f"{statistics.mean(accuracies):.3f}"]
        cells.append(f"{statistics.mean(over):+.1f} ± {statistics.stdev(over):.1f}")
        cells.append(f"{statistics.mean(map(worst_tenth, found)):.2f}")
        cells.append(f"{statistics.mean(row.bytes_up for record in found for row in record.rounds) / 1024:,.0f}")
        print("|", " | ".join(cells), "|", flush=True)


def run(source: Checkpoint, changes: dict[str, Any], out: Path, seed: int) -> StageRecord:
    """Return the record of a run, which is made if it isn't there; one of other options is refused."""
    federate(source, FederateOptions(**COMMON | changes, out=out, seed=seed, resume=True))
    return StageRecord.load(out)


def worst_tenth(record: StageRecord) -> float:
    """Return the mean accuracy of the worst tenth of the clients, each by its own model where it has one."""
    return worst_decile([row.metrics.get("accuracy_after", row.metrics["accuracy"]) for row in record.clients])


def flags(options: dict[str, Any]) -> str:
    """Return options as they stand on the command line."""
    pairs = [(name, one) for name, value in options.items() for one in (value if isinstance(value, list) else [value])]
    return " ".join(f"--{name.replace('_', '-')}" + ("" if one is True else f" {one}") for name, one in pairs)


if __name__ == "__main__":
    main()
