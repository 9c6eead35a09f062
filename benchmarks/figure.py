"""Draw docs/demo.svg from the stage records of a finished `headwater demo`: accuracy from source to device.

python benchmarks/figure.py runs/demo_en docs/demo.svg
"""

import sys
from pathlib import Path

from bars import Bar, draw

from headwater.records import StageRecord


def main(folder: str, out: str) -> None:
    def read(name: str) -> StageRecord:
        return StageRecord.load(Path(folder) / name)

    def mean(method: str, rows: int) -> float:
        return sum(read(f"{method}-{rows}-s{seed}").metrics["test"]["accuracy"] for seed in range(3)) / 3

    seeds = [read(f"init-200-s{seed}").baselines["tfidf_logistic_regression"]["accuracy"] for seed in range(3)]
    linear = sum(seeds) / len(seeds)
    federated, personal, small = read("federated"), read("personal"), read("small")
    simple = federated.baselines
    accuracies = [
        ("majority class", simple["majority"]["accuracy"], "base"),
        ("200 labels, from scratch", mean("scratch", 200), "base"),
        ("200 labels, TF-IDF + logistic regression", linear, "base"),
        ("200 labels, transferred (fine-tuned)", mean("finetune", 200), "ours"),
        ("each of 297 authors alone", federated.controls["alone"]["accuracy"], "base"),
        ("federated over the authors", federated.metrics["test"]["accuracy"], "ours"),
        ("all rows in one place", federated.controls["central"]["accuracy"], "base"),
        ("all rows, TF-IDF + logistic regression", simple["tfidf_logistic_regression"]["accuracy"], "base"),
        ("federated, a personal head each", personal.metrics["after"]["accuracy"], "ours"),
        ("the same in int8, a quarter of the bytes", small.metrics["after"]["accuracy"], "ours"),
    ]  # fmt: skip
    rows = int(federated.metrics["test"]["n"])
    draw(
        [Bar(label, value, f"{100 * value:.1f} %", kind) for label, value, kind in accuracies],
        f"Accuracy on {rows} test sentences, from source to device",
        f"accuracy on {rows} product sentences",
        out,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
