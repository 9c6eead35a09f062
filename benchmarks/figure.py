"""Draw docs/demo.svg from the stage records of a finished `headwater demo`: accuracy from source to device.

python benchmarks/figure.py runs/demo_en docs/demo.svg
"""

import sys
from html import escape
from pathlib import Path

from headwater.records import StageRecord

WIDTH, ROW, LABEL, SCALE = 760, 30, 300, 4.4


def main(folder: str, out: str) -> None:
    def read(name: str) -> StageRecord:
        return StageRecord.load(Path(folder) / name)

    def mean(method: str, rows: int) -> float:
        return sum(read(f"{method}-{rows}-s{seed}").metrics["test"]["accuracy"] for seed in range(3)) / 3

    seeds = [read(f"init-200-s{seed}").baselines["tfidf_logistic_regression"]["accuracy"] for seed in range(3)]
    linear = sum(seeds) / len(seeds)
    federated, personal, small = read("federated"), read("personal"), read("small")
    simple = federated.baselines
    bars = [
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
    height = ROW * len(bars) + 34
    rows = int(federated.metrics["test"]["n"])
    style = (
        "text{font:14px system-ui,sans-serif;fill:#57606a}.n{fill:#1f2933;font-weight:600}.base{fill:#9aa5b1}"
        ".ours{fill:#0b7285}@media(prefers-color-scheme:dark){text{fill:#9aa5b1}.n{fill:#e4e7eb}.base{fill:#52606d}"
        ".ours{fill:#3bc9db}}"
    )
    title = f"Accuracy on {rows} test sentences, from source to device"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
    parts = [head, f"<style>{style}</style>"]
    for number, (label, value, kind) in enumerate(bars):
        y = number * ROW + 8
        width = value * 100 * SCALE
        parts.append(f'<text x="{LABEL - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect class="{kind}" x="{LABEL}" y="{y}" width="{max(width, 1):.1f}" height="20" rx="3"/>')
        parts.append(f'<text class="n" x="{LABEL + width + 8:.1f}" y="{y + 15}">{100 * value:.1f} %</text>')
    parts.append(f'<text x="{LABEL}" y="{height - 8}">accuracy on {rows} product sentences</text></svg>')
    Path(out).write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
