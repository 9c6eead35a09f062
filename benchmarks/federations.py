"""Print federations beside their controls, means over seeds: `python benchmarks/federations.py OUT`.

OUT is the folder of `journeys/federations.toml` or another whose federations are named NAME-sSEED.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from headwater.records import StageRecord
from headwater.statistics import worst_decile

found = defaultdict(list)
for path in sorted(Path(sys.argv[1]).glob("*/stage.json")):
    record = StageRecord.load(path.parent)
    if record.rounds and record.controls:
        found[record.name.rpartition("-s")[0]].append(record)

print(
    "| federation | seeds | majority | bag of words | start | each alone | federated | all in one place | worst tenth |"
)
print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
for name, records in found.items():
    figures = [
        [record.baselines.get("majority", {}) for record in records],
        [record.baselines.get("tfidf_logistic_regression", {}) for record in records],
        [record.metrics["before"] for record in records],
        [record.controls["alone"] for record in records],
        [record.metrics["test" if "test" in record.metrics else "valid"] for record in records],
        [record.controls["central"] for record in records],
    ]
    cells = []
    for seeds in figures:
        values = [seed["accuracy"] for seed in seeds if seed]
        cells.append(f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" if values else "-")
    tenth = [worst_decile([row.metrics["accuracy"] for row in record.clients]) for record in records]
    print(f"| {name} | {len(records)} |", " | ".join([*cells, f"{np.mean(tenth):.3f}"]), "|")
