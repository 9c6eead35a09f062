"""Print what each way of personalization is worth to the clients: `python benchmarks/personalization.py OUT`.

OUT is the folder of `journeys/federations.toml`, of which the hotels are read. Each client counts the same; figures
are means over the seeds.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from headwater.records import StageRecord
from headwater.statistics import over_clients

views = defaultdict(list)
for path in sorted(Path(sys.argv[1]).glob("*/stage.json")):
    record = StageRecord.load(path.parent)
    if not str(record.config.get("data", "")).startswith("hotel_en"):
        continue
    way = record.name.rpartition("-s")[0]
    names = {"accuracy_alone": "*each client alone*", "accuracy_after": way}
    if way == "hotels":
        names |= {"accuracy_before": "*the source*", "accuracy": "*the shared model*"}
    for figure, name in names.items():
        values = [row.metrics[figure] for row in record.clients if figure in row.metrics]
        if values:
            views[name].append(over_clients(values))
print("| model | seeds | mean accuracy | worst tenth | standard deviation over clients |")
print("| --- | --- | --- | --- | --- |")
for name, seeds in sorted(views.items(), key=lambda item: (not item[0].startswith("*"), item[0])):
    figures = (f"{np.mean([seed[part] for seed in seeds]):.3f}" for part in ("mean", "worst", "spread"))
    print("|", name, "|", len(seeds), "|", " | ".join(figures), "|")
