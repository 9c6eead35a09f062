"""A small classifier: one step of our trainer, and one round of a simulated federation, beside the usual loops.

Shapes: B batch, T time, E inputs, H hidden, K classes.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence

from headwater.benchmark.layers import TORCH
from headwater.benchmark.measure import OURS, Paths, Row, race
from headwater.config import cores
from headwater.data.batches import batch_of
from headwater.data.examples import Examples
from headwater.federated.aggregators import WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.protocols import FederatedAlgorithm
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.model import DropoutOptions, EncoderOptions, SequenceModel, TokenEncoder
from headwater.tasks.classification import Classification
from headwater.trainer import TaskObjective, TrainOptions, fit
from headwater.weights import weights_of

_VOCABULARY, _BATCH, _STEPS, _CLIENTS, _LR = 2000, 32, 4, 4, 3e-3
_TASK = Classification(labels=("no", "yes"), pooling="last")
_NO_DROPOUT = DropoutOptions(embedding_dropout=0, input_dropout=0, hidden_dropout=0, head_dropout=0)


class PlainClassifier(nn.Module):
    """The same classifier as it is usually written."""

    def __init__(self, cell: str, options: EncoderOptions) -> None:
        super().__init__()
        self.embedding = nn.Embedding(_VOCABULARY, options.embedding_size, padding_idx=0)
        self.rnn = TORCH[cell](options.embedding_size, options.hidden_size, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * options.hidden_size, len(_TASK.labels))

    def forward(self, tokens_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Return logits (B, K)."""
        x = pack_padded_sequence(self.embedding(tokens_BT), lengths_B, batch_first=True, enforce_sorted=False)
        _, state = self.rnn(x)
        h_2BH = state[0] if isinstance(state, tuple) else state
        logits_BK: Tensor = self.linear(torch.cat([h_2BH[0], h_2BH[1]], 1))
        return logits_BK


def plain_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, examples: Examples, rng: np.random.Generator
) -> None:
    """Train on all rows once, in batches of rows of any length."""
    order = rng.permutation(len(examples))
    for start in range(0, len(order), _BATCH):
        batch = batch_of(examples, order[start : start + _BATCH])
        loss = F.cross_entropy(model(batch.inputs, batch.lengths_B), batch.targets_B)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def training_step(cell: str, budget: float) -> list[Row]:
    """Measure a step of training, in short epochs."""
    model, plain = _models(cell)
    examples = _examples(_STEPS * _BATCH)
    objective = TaskObjective(model, _TASK, examples, _BATCH, seed=0)
    options = TrainOptions(epochs=1, batch_size=_BATCH, lr=_LR, patience=0)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=_LR)
    rng = np.random.default_rng(0)

    def ours() -> None:
        fit(model, [objective], dict, options, best_by=None, seed=0)

    def theirs() -> None:
        plain_epoch(plain, optimizer, examples, rng)

    paths: Paths = {(OURS, "float32"): ours, ("plain loop", "float32"): theirs}
    return race(paths, budget=budget, share=1 / _STEPS, part="fit", case=f"B{_BATCH}, bidirectional", cell=cell)


def federated_round(cell: str, budget: float) -> list[Row]:
    """Measure a round of federated averaging over clients with a batch each: a process a core, and a plain loop."""
    model, plain = _models(cell)
    clients = {f"c{number}": _examples(_BATCH, seed=number) for number in range(_CLIENTS)}
    training = LocalTraining(model, _TASK, 1, _BATCH, _LR, "sgd", 1.0, torch.device("cpu"))
    algorithm = FederatedAlgorithm(
        aggregator=WeightedMean(), server_optimizer=ServerSGD(), sampler=Uniform(1.0, seed=0)
    )
    start = weights_of(model)
    rng = np.random.default_rng(0)

    def ours() -> None:
        run_rounds(algorithm, cohort, FederationState(start), Stopping(rounds=1), lambda _: {}, seed=0)

    def theirs() -> None:
        states = []
        for examples in clients.values():
            local = copy.deepcopy(plain)
            plain_epoch(local, torch.optim.SGD(local.parameters(), lr=_LR), examples, rng)
            states.append(local.state_dict())
        plain.load_state_dict({key: torch.stack([state[key] for state in states]).mean(0) for key in states[0]})

    paths: Paths = {(OURS, "float32"): ours, ("plain loop", "float32"): theirs}
    with LocalCohort(clients, training, processes=cores()) as cohort:
        return race(paths, budget=budget, part="round", case=f"{_CLIENTS} clients", cell=cell)


def _models(cell: str) -> tuple[SequenceModel, PlainClassifier]:
    torch.manual_seed(0)
    options = EncoderOptions(cell=cell)
    encoder = TokenEncoder(_VOCABULARY, options, _NO_DROPOUT)
    return SequenceModel(encoder, _TASK.head(encoder, 0.0)), PlainClassifier(cell, options)


def _examples(count: int, seed: int = 0) -> Examples:
    """Return rows of 1 to 100 tokens, log-normal, 28 in the mean."""
    rng = np.random.default_rng(seed)
    lengths_N = np.clip(25 * np.exp(0.5 * rng.standard_normal(count)), 1, 100).astype(int)
    return Examples(
        [rng.integers(2, _VOCABULARY, length) for length in lengths_N], rng.integers(2, size=count).tolist()
    )
