"""Print accuracy against bytes of federations through stacks of codecs, as a Markdown table.

    python benchmarks/codecs.py runs/demo_en/movies runs/codecs data=card:amazon_reviews/train \
        test=card:amazon_reviews/test client=review rounds=60

SOURCE and OUT, then options of `federate` that all share; what OUT has already is not run again. Figures are means over
three seeds, beside the standard deviation of what each run has over the plain run of its seed.
"""

import sys
from pathlib import Path

import numpy as np

from headwater.checkpoint import Checkpoint
from headwater.errors import HeadwaterError
from headwater.federated.options import FederateOptions
from headwater.federated.verb import federate
from headwater.records import StageRecord

SEEDS = (0, 1, 2)
BACK = {"error_feedback": True}
STACKS = [
    {},
    {"codec": ["int8"]},
    {"codec": ["int8"], "down_codec": "int8"},
    {"codec": ["sparse_rows", "int8"], "zstd": 3},
    {"codec": ["sparse_rows", "int4"], "zstd": 3},
    {"codec": ["int4"]},
    {"codec": ["ternary"]},
    {"codec": ["sign"]} | BACK,
    {"codec": ["rotation"], "rotation_bits": 4},
    {"codec": ["low_rank"]} | BACK,
    {"codec": ["top_k", "int8"], "zstd": 3} | BACK,
    {"codec": ["top_k", "int8"], "keep": 0.02, "down_codec": "int8"} | BACK,
]


def flags(stack):
    pairs = [(name, one) for name, value in stack.items() for one in (value if isinstance(value, list) else [value])]
    return " ".join(f"--{name.replace('_', '-')}" + ("" if one is True else f" {one}") for name, one in pairs)


def run(source, out, shared, stack, seed):
    folder = out / f"plain{flags(stack).replace(' ', '')}-s{seed}"
    options = {"controls": False, "quiet": True} | shared | stack | {"out": folder, "resume": True, "seed": seed}
    federate(Checkpoint.load(source), FederateOptions.parse(options))  # refuses a folder made with others
    return StageRecord.load(folder)


def size(records, direction):
    return np.mean([getattr(row, direction) for record in records for row in record.rounds]) / 2**20


def main(source, out, *given):
    shared = dict(pair.split("=", 1) for pair in given)
    print("| flags | accuracy | points over plain | MiB up a round | of plain | MiB down a round | of plain |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    plain = [run(source, Path(out), shared, {}, seed) for seed in SEEDS]
    where = "test" if "test" in plain[0].metrics else "valid"
    plain_S = np.array([record.metrics[where]["accuracy"] for record in plain])
    for stack in STACKS:
        records = [run(source, Path(out), shared, stack, seed) for seed in SEEDS]
        accuracy_S = np.array([record.metrics[where]["accuracy"] for record in records])
        over_S = 100 * (accuracy_S - plain_S)
        cells = [f"`{flags(stack)}`" if stack else "(plain)", f"{accuracy_S.mean():.3f}"]
        cells.append(f"{over_S.mean():+.1f} ± {over_S.std(ddof=1):.1f}")
        for direction in ("bytes_up", "bytes_down"):
            sent = size(records, direction)
            cells += [f"{sent:.3g}", f"{100 * sent / size(plain, direction):.2f} %"]
        print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except HeadwaterError as error:
        sys.exit(f"{error}")
