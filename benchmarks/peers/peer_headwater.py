"""Headwater: two processes; its own cells, client update, wire, aggregator and server optimizer.

The variant ``bfloat16`` multiplies in that type, with weights and sums in float32; ``torch`` does without the kernels;
``flags`` has on what people use: int8 updates, clipped steps, and the model measured after every round.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from headwater import native
from headwater.data.batches import Batch
from headwater.data.examples import Examples
from headwater.federated.aggregators import WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.client_updates import LocalTraining
from headwater.federated.codecs.quantization import Int8
from headwater.federated.codecs.transforms import EncodeUpdates
from headwater.federated.protocols import FederatedAlgorithm
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.model import DropoutOptions, Encoder, EncoderOptions, SequenceModel, TokenEncoder
from headwater.native import linear_cross_entropy
from headwater.tasks import Task
from headwater.tasks.classification import Classification
from headwater.weights import load_weights, weights_of
from measure import Run
from workloads import Workload, all_clients, new_model


class NextWord(Task):
    """The next word at every step, by a softmax with weights of its own; Headwater's ties them to the embedding."""

    needs_labels: ClassVar[bool] = False
    one_direction: ClassVar[bool] = True

    vocabulary: int

    def head(self, encoder: Encoder, dropout: float) -> nn.Module:
        del dropout
        return StepwiseLinear(encoder.output_size, self.vocabulary)

    def loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        y_NH, place_N = model.encoder.valid_states(batch.inputs[:, :-1], batch.lengths_B - 1)
        targets_N = batch.inputs[:, 1:].flatten()[place_N]
        linear = model.head.linear
        return linear_cross_entropy(y_NH, linear.weight, linear.bias, targets_N)

    def count(self, model: SequenceModel, examples: Examples, batch_size: int) -> Any:
        raise NotImplementedError("a speed test has no figures")


class StepwiseLinear(nn.Module):
    """One linear layer at every step."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, y: Tensor, lengths_B: Tensor) -> Tensor:
        del lengths_B
        return self.linear(y)


def examples_of(w: Workload, rows: list) -> Examples:
    """Return a client's rows; a row of ``next_word`` is its tokens and the last target."""
    if w.task == "next_word":
        return Examples([np.append(tokens, targets[-1]) for tokens, targets in rows])
    return Examples([tokens for tokens, _ in rows], [target for _, target in rows])


def build(w: Workload) -> tuple[SequenceModel, Task]:
    """Return the model with the start weights that all peers have, and its task."""
    options = EncoderOptions(
        cell=w.cell, embedding_size=w.embedding, hidden_size=w.hidden, layers=w.layers, bidirectional=False
    )
    encoder = TokenEncoder(w.vocabulary, options, DropoutOptions(**dict.fromkeys(DropoutOptions.model_fields, 0.0)))
    task = (
        NextWord(vocabulary=w.vocabulary)
        if w.task == "next_word"
        else Classification(labels=tuple(str(number) for number in range(w.classes)), pooling="last")
    )
    model = SequenceModel(encoder, task.head(encoder, 0.0))
    reference = new_model(w).state_dict()
    load_weights(model, {ours: reference[name] for name, ours in our_names(w).items()})
    return model, task


def our_names(w: Workload) -> dict[str, str]:
    """Return the reference model's parameter names and ours."""
    names = {
        f"recurrent.{kind}_l{layer}": f"encoder.stack.layers.{layer}.fwd.{kind}"
        for layer in range(w.layers)
        for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    names |= {f"output.{kind}": f"head.linear.{kind}" for kind in ("weight", "bias")}
    return {"embedding.weight": "encoder.embedding.weight", **names}


def main() -> None:
    run = Run(__doc__, ("float32", "bfloat16", "torch", "flags"))
    torch.set_num_threads(1)
    w = run.workload
    model, task = build(w)
    client_update = LocalTraining(
        model=model,
        task=task,
        epochs=1,
        batch_size=w.batch,
        lr=w.lr,
        shuffle=False,
        clip=1.0 if run.variant == "flags" else 0.0,
        precision="bfloat16" if run.variant == "bfloat16" else "float32",
    )
    algorithm = FederatedAlgorithm(
        transforms=[EncodeUpdates([Int8()])] if run.variant == "flags" else [],
        aggregator=WeightedMean(),
        server_optimizer=ServerSGD(),
        sampler=Uniform(participation=1.0, seed=w.seed),
    )
    data = {f"{number:03}": examples_of(w, rows) for number, rows in enumerate(all_clients(w))}

    def evaluate(weights):
        load_weights(model, weights)
        return task.count(model, data["000"], 64).figures()

    kernels = native.OFF if run.variant == "torch" else native.level()
    with native.using(kernels), LocalCohort(data, client_update, processes=2) as cohort:
        run.mark()
        weights, _ = run_rounds(
            algorithm,
            cohort,
            FederationState(weights_of(model)),
            Stopping(rounds=run.total_rounds, keep_best=False),
            evaluate=evaluate if run.variant == "flags" else lambda _: {},
            seed=w.seed,
            after_round=lambda _: run.mark(),
        )
    run.finish({name: weights[ours] for name, ours in our_names(w).items()}, kernels=kernels)


if __name__ == "__main__":
    main()
