"""What every peer trains: the same rows, start weights, batches and mathematics, from numpy and torch alone.

A workload is named by its shape and, if it isn't the LSTM, its cell: ``M``, ``M-gru``, ``XS-rnn``.

Each peer's local training comes in two variants of the same mathematics:

- ``packed``: `pack_padded_sequence`, what most people write;
- ``padded``: batches made once, the layer over the padded tensor, a loss that reads valid steps only; what an expert
  writes.
"""

import math
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader

PAD = 0
NO_TARGET = -100
VARIANTS = ("packed", "padded")
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass(frozen=True)
class Workload:
    """The shape of a federation: all clients take part in every round, with one epoch of plain SGD.

    Attributes:
        task: ``"next_char"`` after a window of fixed length, ``"label"`` of a text, or ``"next_word"`` at every step.
        clients: How many.
        rows: Of a client on average; they differ by up to 40 % either way.
        longest: Tokens of the longest row.
        rounds: Measured, after `warmup` others.
    """

    name: str
    task: Literal["next_char", "label", "next_word"]
    clients: int
    rows: int
    vocabulary: int
    embedding: int
    hidden: int
    layers: int
    longest: int
    batch: int
    lr: float
    classes: int
    rounds: int
    warmup: int = 1
    cell: str = "lstm"
    seed: int = 7


_SHAPES = [
    # Characters of plays, the shape of LEAF's Shakespeare: no padding anywhere.
    Workload("S", "next_char", 20, 100, 90, 8, 256, 2, 80, 10, 0.5, 90, rounds=2),
    # Sentiment of texts whose lengths differ widely.
    Workload("M", "label", 10, 200, 10_000, 128, 256, 1, 200, 32, 0.1, 2, rounds=2),
    # A keyboard's next word, on many small clients: a framework's own cost shows.
    Workload("XS", "next_word", 100, 20, 2_000, 32, 64, 1, 30, 10, 0.5, 2_000, rounds=4),
    # Not for timing: the least that shows whether a peer runs and agrees.
    Workload("tiny", "label", 4, 20, 50, 8, 16, 1, 12, 8, 0.1, 2, rounds=2),
]


def workload(name: str, **changes: int) -> Workload:
    """Return the workload of a name such as ``M`` or ``M-gru``, with other numbers where given."""
    shape, _, cell = name.partition("-")
    found = {w.name: w for w in _SHAPES}[shape]
    return replace(found, name=name, cell=cell or found.cell, **changes)


@lru_cache(maxsize=1)
def all_clients(w: Workload) -> list[list[tuple[np.ndarray, int | np.ndarray]]]:
    """Return each client's rows of tokens and target (``next_word``: a target a step); made once a process."""
    rng = np.random.default_rng(w.seed)
    sizes = np.round(w.rows * rng.uniform(0.6, 1.4, w.clients)).astype(int)
    sizes[-1] += w.rows * w.clients - sizes.sum()
    return [[_row(w, rng) for _ in range(max(1, size))] for size in sizes]


def _row(w: Workload, rng: np.random.Generator) -> tuple[np.ndarray, int | np.ndarray]:
    length = w.longest
    if w.task != "next_char":  # log-normal, with a mean of about half the longest
        length = int(np.clip(round(w.longest * 0.42 * math.exp(0.55 * rng.standard_normal())), 3, w.longest))
    # Few tokens are frequent and many rare, as in language; 0 is left to padding.
    text = 1 + np.minimum((rng.pareto(1.1, length + 1) * 8).astype(np.int64), w.vocabulary - 2)
    tokens = text[:-1]
    if w.task == "next_word":
        return tokens, text[1:]
    return tokens, int(text[-1] if w.task == "next_char" else tokens.sum() % w.classes)


class Net(nn.Module):
    """Embedding, recurrent layers, linear output: the reference model."""

    def __init__(self, w: Workload, variant: str) -> None:
        super().__init__()
        self.task = w.task
        self.variant = variant
        self.embedding = nn.Embedding(w.vocabulary, w.embedding)
        self.recurrent = CELLS[w.cell](w.embedding, w.hidden, w.layers, batch_first=True)
        self.output = nn.Linear(w.hidden, w.classes)

    def loss(self, tokens: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross entropy of a batch: a row, or for ``next_word`` a step."""
        embedded = self.embedding(tokens)
        if self.variant == "packed" and self.task != "next_char":  # rows of one length need no packing
            packed = pack_padded_sequence(embedded, lengths, batch_first=True, enforce_sorted=False)
            states, last = self.recurrent(packed)
            if self.task == "label":
                last = last[0] if isinstance(last, tuple) else last  # an LSTM's is h and c
                return F.cross_entropy(self.output(last[-1]), targets)
            states, _ = pad_packed_sequence(states, batch_first=True)
            return F.cross_entropy(self.output(states).flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET)
        states, _ = self.recurrent(embedded)
        if self.task == "next_word":
            valid = targets != NO_TARGET
            return F.cross_entropy(self.output(states[valid]), targets[valid])
        return F.cross_entropy(self.output(states[torch.arange(len(lengths)), lengths - 1]), targets)


def new_model(w: Workload, variant: str = "packed", kind: type[Net] = Net) -> Net:
    """Return the model with the start weights, which are the same in every peer."""
    torch.manual_seed(w.seed)
    return kind(w, variant)


def collate(rows: list[tuple[np.ndarray, int | np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return rows as one batch: padded tokens, lengths, targets."""
    tokens = [torch.from_numpy(tokens) for tokens, _ in rows]
    lengths = torch.tensor([len(row) for row in tokens])
    targets = [torch.as_tensor(target) for _, target in rows]
    if targets[0].ndim:
        return pad_sequence(tokens, True, PAD), lengths, pad_sequence(targets, True, NO_TARGET)
    return pad_sequence(tokens, True, PAD), lengths, torch.stack(targets)


def batches(w: Workload, client: int) -> DataLoader:
    """Return a client's batches in the order of its rows, the same in every peer."""
    return DataLoader(all_clients(w)[client], batch_size=w.batch, collate_fn=collate)


@cache
def kept_batches(w: Workload, client: int) -> list[tuple[torch.Tensor, ...]]:
    """Return the same, made once a process."""
    return list(batches(w, client))


def train_client(w: Workload, model: Net, client: int) -> int:
    """Train the model on a client's rows; return how many there are."""
    optimizer = torch.optim.SGD(model.parameters(), lr=w.lr)
    model.train()
    for batch in (batches if model.variant == "packed" else kept_batches)(w, client):
        optimizer.zero_grad()
        model.loss(*batch).backward()
        optimizer.step()
    return len(all_clients(w)[client])


def sample_loss(w: Workload, model: Net) -> float:
    """Return the loss on eight rows of each of four clients: enough to see that training did something."""
    rows = [row for client in all_clients(w)[:4] for row in client[:8]]
    model.eval()
    with torch.no_grad():
        return float(model.loss(*collate(rows)))
