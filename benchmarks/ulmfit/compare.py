"""ULMFiT's steps in Headwater beside fastai's, on the same rows, sizes and epochs.

    ULMFIT_FASTAI=.../bin/python python compare.py imdb/train.jsonl.gz OUT

Headwater's environment runs this script; `ULMFIT_FASTAI` is the `python` of one with fastai 2.8.12, which needs no
torchvision for text (`pip install --no-deps fastai fasttransform fastdownload`, and what it then says is missing).
fastai's time is that of its fits alone; Headwater's that of its whole commands, with start, tokens, held-out figures,
the linear baseline and the writing of checkpoints. Runs alternate.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from headwater.data.rows import read_rows
from headwater.features.text import TextFeaturizer, TextOptions

SIZES = {
    "embedding_size": 400,
    "hidden_size": 400,
    "layers": 3,
    "vocabulary_size": 10_000,
    "batch_size": 64,
    "bptt": 72,
    "lm_epochs": 1,
    "epochs": 4,
    "lr": 0.005,
    "valid": 0.1,
}
DROPOUT = {"embedding": 0.02, "input": 0.25, "hidden": 0.15, "weight": 0.2, "head": 0.1}
ROWS, MAX_LENGTH, REPEATS = 1_000, 1_440, 3


def main() -> None:
    """Alternate the runs, print the medians and their ratios."""
    out = Path(sys.argv[2])
    out.mkdir(parents=True)
    rows = _tokenized(sys.argv[1], out / "rows.csv")
    settings = out / "settings.json"
    settings.write_text(json.dumps(SIZES))
    seconds: dict[str, list[tuple[float, float]]] = {"fastai": [], "float32": [], "bfloat16": []}
    for number in range(REPEATS):
        seconds["fastai"].append(_fastai(rows, settings))
        for precision in ("float32", "bfloat16"):
            seconds[precision].append(_headwater(rows, out / f"{precision}-{number}", precision))
        print(json.dumps({name: runs[-1] for name, runs in seconds.items()}), flush=True)
    median = {name: [statistics.median(part) for part in zip(*runs, strict=True)] for name, runs in seconds.items()}
    for name in ("float32", "bfloat16"):
        model, classifier = (theirs / ours for theirs, ours in zip(median["fastai"], median[name], strict=True))
        whole = sum(median["fastai"]) / sum(median[name])
        print(f"{name}: language model {model:.2f}, classifier {classifier:.2f}, together {whole:.2f}")


def _tokenized(data: str, out: Path) -> Path:
    """Write the first rows as tokens with spaces between, so that both split them alike."""
    rows = read_rows(data, text="text", label="label").take(range(ROWS))
    featurizer = TextFeaturizer.fit(rows.texts, TextOptions(max_length=MAX_LENGTH))
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for text, label in zip(rows.texts, rows.labels, strict=True):
            writer.writerow([" ".join(featurizer.tokens(text)), label])
    return out


def _fastai(rows: Path, settings: Path) -> tuple[float, float]:
    script = Path(__file__).with_name("fastai_steps.py")
    command = [os.environ["ULMFIT_FASTAI"], script, rows, settings]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(printed[printed.rindex("{") :])
    return found["lm_seconds"], found["classifier_seconds"]


def _headwater(rows: Path, out: Path, precision: str) -> tuple[float, float]:
    shared = {"data": rows, "precision": precision, "processes": 0}
    shared |= {name: SIZES[name] for name in ("valid", "batch_size", "lr")}
    shape = {name: SIZES[name] for name in ("embedding_size", "hidden_size", "layers", "vocabulary_size", "bptt")}
    dropout = {f"{place}_dropout": share for place, share in DROPOUT.items()}
    training = {"task": "language_modeling", "epochs": SIZES["lm_epochs"], "max_length": MAX_LENGTH} | shape | dropout
    model = _stage("pretrain", "--no-bidirectional", **shared, **training, out=out / "model")
    tuning = {"method": "finetune", "unfreeze": "gradual", "lr_decay": 2.6, "epochs": SIZES["epochs"], "patience": 0}
    return model, _stage("transfer", str(out / "model"), "--no-control", **shared, **tuning, out=out / "classifier")


def _stage(*words: str, **options: object) -> float:
    flags = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "headwater", *words, "--quiet", *flags], check=True, capture_output=True)
    return time.perf_counter() - begun


main()
