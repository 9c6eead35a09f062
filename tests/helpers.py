"""Generated toy rows that a small network can learn, and tiny options to learn them with."""

import csv
import json
from types import MappingProxyType

import numpy as np
import torch

from headwater.checkpoint import ModelConfig
from headwater.data.examples import Examples
from headwater.data.rows import Rows
from headwater.features.text import SPECIAL, TextFeaturizer, TextOptions
from headwater.model import DropoutOptions, EncoderOptions

POLAR = MappingProxyType(
    {
        "bad": ("awful", "boring", "broken", "dull"),
        "fair": ("average", "decent", "okay", "plain"),
        "good": ("brilliant", "lovely", "superb", "warm"),
    }
)
NEUTRAL = tuple(f"{thing}{number}" for thing in ("film", "plot", "scene") for number in range(6))
NO_DROPOUT = DropoutOptions(
    embedding_dropout=0.0, input_dropout=0.0, hidden_dropout=0.0, weight_dropout=0.0, head_dropout=0.0
)
TINY = MappingProxyType(
    {"embedding_size": 8, "hidden_size": 8, "epochs": 2, "valid": 0.3, "quiet": True, "lr": 0.02, "device": "cpu"}
)
"""Options of a training that takes a second; half of the options of `pretrain` that matter for its time."""


def toy_rows(count, *, seed=0, labels=("bad", "good"), clients=0):
    """Return rows whose label one or two of their 3 to 9 words give away, labels in turn."""
    rng = np.random.default_rng(seed)
    found = [labels[index % len(labels)] for index in range(count)]
    texts = []
    for label in found:
        words = list(rng.choice(NEUTRAL, rng.integers(2, 8))) + list(rng.choice(POLAR[label], rng.integers(1, 3)))
        texts.append(" ".join(rng.permutation(words)))
    owners = [f"c{int(n)}" for n in rng.integers(clients, size=count)] if clients else []
    return Rows(texts, found, owners, "toy", "0" * 64)


def write_csv(path, rows):
    """Write rows as a CSV file and return its path as text."""
    columns = {"text": rows.texts, "label": rows.labels} | ({"client": rows.clients} if rows.clients else {})
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return str(path)


def toy_series(count, *, seed=0, labels=("falls", "rises"), clients=0):
    """Return rows of 3 to 9 steps and 2 channels of unlike scales; the label says how the second one goes on."""
    rng = np.random.default_rng(seed)
    found = [labels[index % len(labels)] for index in range(count)]
    values = []
    for label in found:
        slope = labels.index(label) - (len(labels) - 1) / 2
        steps = np.arange(rng.integers(3, 10))
        noise = rng.normal(size=(len(steps), 2))
        values.append(np.stack([1000 + 50 * noise[:, 0], 0.01 * (slope * steps + 0.3 * noise[:, 1])], 1))
    owners = [f"c{int(n)}" for n in rng.integers(clients, size=count)] if clients else []
    return Rows(values, found, owners, "toy", "0" * 64, [str(index + 1) for index in range(count)])


def write_lists(path, rows):
    """Write numeric rows as JSON lines, lists of steps, and return the file's path as text."""
    with path.open("w") as stream:
        for index, (values, label) in enumerate(zip(rows.inputs, rows.labels, strict=True)):
            client = {"client": rows.clients[index]} if rows.clients else {}
            stream.write(json.dumps({"values": values.tolist(), "label": label} | client) + "\n")
    return str(path)


def toy_featurizer():
    """Return a featurizer that knows every toy word."""
    words = [*NEUTRAL, *(word for polar in POLAR.values() for word in polar)]
    return TextFeaturizer(TextOptions(), (*SPECIAL, *words))


def toy_config(*, task=None, dropout=NO_DROPOUT, labels=("bad", "good"), **encoder):
    """Return the config of a tiny model."""
    featurizer = toy_featurizer()
    return ModelConfig(
        encoder=EncoderOptions(**({"embedding_size": 6, "hidden_size": 5} | encoder)),
        vocabulary_size=len(featurizer.vocabulary),
        dropout=dropout,
        featurizer=featurizer.options,
        task=task or {"name": "classification", "labels": labels, "pooling": "concat"},
    )


def toy_model(config, seed=0):
    """Return the drawn model of a config; the same seed gives the same bits."""
    torch.manual_seed(seed)
    return config.build()


def toy_examples(count, *, seed=0, labels=("bad", "good")):
    """Return encoded toy rows."""
    return toy_rows(count, seed=seed, labels=labels).encode(toy_featurizer(), labels)


def join(parts):
    """Return the examples of several sets, one behind the other."""
    inputs = [p.inputs[s : s + n] for p in parts for s, n in zip(p.starts_N, p.lengths_N, strict=True)]
    return Examples(inputs, [int(target) for p in parts for target in p.targets_N])


def same_bits(a, b):
    """Return whether two sets of named tensors have the same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
