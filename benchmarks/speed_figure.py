"""Draw docs/speed.svg from the runs of benchmarks/peers/compare.py: how many times as fast as the plain loop.

python benchmarks/speed_figure.py benchmarks/peers/results docs/speed.svg
"""

import json
import sys
from pathlib import Path
from statistics import median

from bars import Bar, draw

WORKLOADS = {
    "M": "sentiment: 10 clients x 200 ragged rows, LSTM 256",
    "XS": "next word: 100 clients x 20 short rows, LSTM 64",
}
PEERS = {
    "naive": "plain loop, packed",
    "naive-padded": "plain loop, padded by an expert",
    "pfl": "pfl-research, packed",
    "pfl-padded": "pfl-research, padded",
    "flower": "Flower, packed",
    "flower-padded": "Flower, padded",
    "headwater": "Headwater",
    "headwater-bfloat16": "Headwater, bfloat16",
}


def main(folder: str, out: str) -> None:
    runs = [json.loads(line) for line in (Path(folder) / "runs.jsonl").read_text().splitlines()]

    def seconds(workload: str, peer: str) -> float | None:
        rounds = [x for run in runs if (run["workload"], run["peer"]) == (workload, peer) for x in run["wall"]]
        return median(rounds) if rounds else None

    bars = []
    for workload, what in WORKLOADS.items():
        base = seconds(workload, "naive")
        times = {peer: seconds(workload, peer) for peer in PEERS}
        if base is None:
            continue
        bars.append(Bar(what))
        for peer, time in times.items():
            if time is not None:
                ratio = base / time
                bars.append(Bar(PEERS[peer], ratio, f"{ratio:.2g}", "ours" if "headwater" in peer else "base"))
    draw(bars, "A simulated round of federated averaging", "times as fast as the plain loop, wall time, two cores", out)


if __name__ == "__main__":
    main(*sys.argv[1:])
