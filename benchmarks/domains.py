"""Print what transfer to each domain gains over scratch, and to all together: `python benchmarks/domains.py OUT`.

OUT is the folder of `journeys/amazon4.toml`: its stages are named DOMAIN-METHOD-ROWS-sSEED.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from headwater.records import StageRecord
from headwater.statistics import paired_bootstrap, verdict


def hits(seeds):
    return np.array([[digit == "1" for digit in record.correct] for _, record in sorted(seeds.items())], dtype=float)


def mean(records, figure):
    return f"{np.mean([figure(record) for record in records]):.3f}"


def gained(ours, theirs):
    gain = paired_bootstrap(ours, theirs)
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}] | {verdict(gain)}"


runs = defaultdict(lambda: defaultdict(dict))
for path in sorted(Path(sys.argv[1]).glob("*/stage.json")):
    record = StageRecord.load(path.parent)
    if record.verb == "transfer":
        runs[record.name.split("-")[0]][record.method][record.seed] = record
print(
    "| domain | *linear* | scratch | the source as it is | method | accuracy | points over scratch [95 %] | verdict |"
)
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
everywhere = defaultdict(list)
for domain, methods in runs.items():
    scratch = methods.pop("scratch")
    for method, seeds in methods.items():
        cells = [
            mean(scratch.values(), lambda record: record.baselines["tfidf_logistic_regression"]["accuracy"]),
            mean(scratch.values(), lambda record: record.metrics["test"]["accuracy"]),
            mean(seeds.values(), lambda record: record.metrics["zero_shot"]["accuracy"]),
            method,
            mean(seeds.values(), lambda record: record.metrics["test"]["accuracy"]),
        ]
        print("|", domain, "|", " | ".join(cells), "|", gained(hits(seeds), hits(scratch)), "|")
        everywhere[method].append((hits(seeds), hits(scratch)))
for method, pairs in everywhere.items():
    ours, theirs = (np.concatenate(scores, axis=1) for scores in zip(*pairs, strict=True))
    print(f"| all | | {theirs.mean():.3f} | | {method} | {ours.mean():.3f} |", gained(ours, theirs), "|")
