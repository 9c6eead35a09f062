"""ULMFiT's steps as fastai runs them, timed: `python fastai_steps.py rows.csv settings.json` prints a line of JSON.

The time is that of the fits alone: reading the rows and making the batches isn't counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from fastai.text.all import (
    AWD_LSTM,
    BaseTokenizer,
    TextDataLoaders,
    accuracy,
    awd_lstm_clas_config,
    awd_lstm_lm_config,
    defaults,
    language_model_learner,
    text_classifier_learner,
)


def main() -> None:
    """Train the language model, then the classifier, with one more layer each epoch."""
    rows = pd.read_csv(sys.argv[1])
    sizes = json.loads(Path(sys.argv[2]).read_text())
    shape = {"emb_sz": sizes["embedding_size"], "n_hid": sizes["hidden_size"], "n_layers": sizes["layers"]}
    shared = {
        "text_col": "text",
        "valid_pct": sizes["valid"],
        "seed": 0,
        "bs": sizes["batch_size"],
        "seq_len": sizes["bptt"],
        "tok_tfm": BaseTokenizer(),
    }
    texts = TextDataLoaders.from_df(rows, is_lm=True, text_vocab=vocabulary(rows, sizes["vocabulary_size"]), **shared)
    model = language_model_learner(texts, AWD_LSTM, config=awd_lstm_lm_config | shape, pretrained=False)
    with model.no_bar(), model.no_logging():
        lm_seconds = timed(lambda: model.fit_one_cycle(sizes["lm_epochs"], sizes["lr"]))
    model.save_encoder("encoder")
    labelled = TextDataLoaders.from_df(rows, label_col="label", text_vocab=texts.vocab, **shared)
    config = awd_lstm_clas_config | shape
    learner = text_classifier_learner(labelled, AWD_LSTM, config=config, pretrained=False, metrics=accuracy)
    learner.load_encoder("encoder")
    with learner.no_bar(), learner.no_logging():
        seconds = 0.0
        for thawed in range(1, sizes["epochs"] + 1):
            learner.freeze_to(-thawed)
            rates = slice(sizes["lr"] / 2.6**4, sizes["lr"])
            seconds += timed(lambda: learner.fit_one_cycle(1, rates))  # noqa: B023 - called at once
    print(
        json.dumps(
            {
                "vocabulary": len(texts.vocab),
                "lm_seconds": lm_seconds,
                "lm_loss": float(model.validate()[0]),
                "classifier_seconds": seconds,
                "accuracy": float(learner.validate()[1]),
            }
        )
    )


def vocabulary(rows: pd.DataFrame, size: int) -> list[str]:
    """Return fastai's special tokens, then the most frequent ones."""
    special = defaults.text_spec_tok
    counts = Counter(token for text in rows.text for token in text.split(" "))
    return [*special, *(token for token, _ in counts.most_common(size - len(special)))]


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


main()
