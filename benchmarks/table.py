"""Print the figures of a finished journey as Markdown, from its stage records alone.

python benchmarks/table.py runs/demo_en
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

from headwater.records import StageRecord
from headwater.statistics import paired_bootstrap, verdict


def digits(record):
    return np.array([digit == "1" for digit in record.correct], dtype=float)


def transfer_table(records):
    runs = defaultdict(dict)
    for record in records:
        if record.verb == "transfer":
            runs[record.config["rows"]].setdefault(record.method, {})[record.seed] = record
    print("| target rows | method | accuracy, mean ± sd over seeds | points over scratch [95 %] | verdict |")
    print("| --- | --- | --- | --- | --- |")
    for rows, methods in sorted(runs.items(), key=lambda item: item[0] or 10**9):
        name = rows or "all"
        any_runs = next(iter(methods.values())).values()
        for baseline in next(iter(any_runs)).baselines:
            values = [record.baselines[baseline]["accuracy"] for record in any_runs]
            print(f"| {name} | *{baseline.replace('_', ' ')}* | {np.mean(values):.3f} ± {np.std(values):.3f} | | |")
        scratch = methods.get("scratch", {})
        for method, seeds in methods.items():
            values = [record.metrics["test"]["accuracy"] for record in seeds.values()]
            cell = f"| {name} | {method} | {np.mean(values):.3f} ± {np.std(values):.3f} |"
            shared = sorted(scratch.keys() & seeds.keys())
            if method == "scratch" or not shared:
                print(cell, "| |")
                continue
            ours, theirs = (np.stack([digits(group[s]) for s in shared]) for group in (seeds, scratch))
            gain = paired_bootstrap(ours, theirs)
            span = f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
            print(cell, f"{span} | {verdict(gain)} |")


def stage_table(records):
    print("| stage | accuracy | macro F1 | beside |")
    print("| --- | --- | --- | --- |")
    for record in records:
        if record.verb == "transfer":
            continue
        figures = record.metrics.get("test", {})
        beside = {**record.baselines, **record.controls}
        if "before" in record.metrics:
            beside["before"] = record.metrics["before"]
        notes = [f"{name.replace('_', ' ')} {value['accuracy']:.3f}" for name, value in beside.items()]
        if record.privacy:
            notes.append(f"epsilon {record.privacy.epsilon:.2f} at delta {record.privacy.delta:.1e}")
        if record.rounds:
            up = sum(row.bytes_up for row in record.rounds) / 2**20
            notes.append(f"{len(record.rounds)} rounds, {up:,.0f} MiB up")
        if record.verification:
            check = record.verification
            notes.append(f"agreement {check.agreement:.4f}, largest difference {check.max_difference:.1e}")
        if record.verb in ("compress", "export"):
            notes += [f"{name} {size:,} bytes" for name, size in record.sizes.items() if name.startswith("model")]
        print(
            f"| {record.name} ({record.method}) | {figures.get('accuracy', float('nan')):.3f} "
            f"| {figures.get('macro_f1', float('nan')):.3f} | {'; '.join(notes)} |"
        )
    print()
    for record in records:
        for row in record.latency:
            print(f"- {record.name}: {row.runtime}, batch {row.batch}, {row.length} tokens: {row.median_us:.0f} us")


def main(folder):
    records = [StageRecord.load(path.parent) for path in sorted(Path(folder).glob("*/stage.json"))]
    records.sort(key=lambda record: (record.started, record.name))
    transfer_table(records)
    print()
    stage_table(records)


if __name__ == "__main__":
    main(sys.argv[1])
