"""Prepare the speakers of tinyshakespeare: `python benchmarks/speakers.py tinyshakespeare wikitext_small OUT`.

OUT gets train.jsonl and test.jsonl, the turns of speakers with 2,000 characters or more to train on, and wiki.jsonl,
the paragraphs of wikitext_small in pieces of 41 to 400 characters: another text, to pre-train on.
"""

import gzip
import json
import sys
from collections import Counter
from pathlib import Path

LEAST, PIECE, SHORT = 2000, 400, 40


def lines(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from file


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path}: {len(rows):,} rows, {sum(len(row['text']) for row in rows):,} characters")


def main(plays, wiki, out):
    turns = [json.loads(line) for line in lines(Path(plays) / "turns.jsonl.gz")]
    said = Counter()
    for turn in turns:
        said[turn["speaker"]] += len(turn["text"]) * (turn["split"] == "train")
    Path(out).mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        kept = [turn for turn in turns if turn["split"] == split and said[turn["speaker"]] >= LEAST]
        write(Path(out) / f"{split}.jsonl", [{"speaker": turn["speaker"], "text": turn["text"]} for turn in kept])
    pieces = []
    for part in ("valid", "test"):
        for line in map(str.strip, lines(Path(wiki) / f"{part}.txt.gz")):
            if line and not line.startswith("="):
                pieces += [line[start : start + PIECE] for start in range(0, len(line), PIECE)]
    write(Path(out) / "wiki.jsonl", [{"text": piece} for piece in pieces if len(piece) > SHORT])


if __name__ == "__main__":
    main(*sys.argv[1:])
