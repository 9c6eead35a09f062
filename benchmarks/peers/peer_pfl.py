"""Apple's pfl-research: its simulated backend in two processes of one thread, which this script starts."""

# ruff: noqa: E402 - pfl reads its environment as it is imported; both processes import at the same time

import os
import subprocess
import sys

# A second process of this same script; the port is below those that systems give away.
os.environ.setdefault("PFL_WORKER_RANK", "0")
PORT = 20_000 + os.getpid() % 10_000
os.environ.setdefault("PFL_WORKER_ADDRESSES", f"127.0.0.1:{PORT},127.0.0.1:{PORT + 1}")
SECOND = None
if os.environ["PFL_WORKER_RANK"] == "0":
    second_environment = os.environ | {"PFL_WORKER_RANK": "1"}
    SECOND = subprocess.Popen([sys.executable, *sys.argv], env=second_environment, stdout=subprocess.DEVNULL)

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from measure import Run
from workloads import Net, all_clients, collate, new_model


class Model(Net):
    """The reference model behind pfl's interface."""

    def loss(self, tokens: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cut a batch, which pfl slices from the client's rows, to its own longest row."""
        self.train()
        longest = int(lengths.max())
        targets = targets[:, :longest] if targets.ndim > 1 else targets
        return super().loss(tokens[:, :longest], lengths, targets)

    def metrics(self, tokens: torch.Tensor, *_: torch.Tensor) -> dict[str, Weighted]:
        """Measure nothing: pfl wants it, the other peers don't do it."""
        return {"loss": Weighted(0.0, len(tokens))}


class Mark(TrainingProcessCallback):
    """Marks the rounds."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:  # noqa: ARG002 - pfl's interface
        self.run.mark()
        return Metrics()

    def after_central_iteration(self, *_: object, **__: object) -> tuple[bool, Metrics]:
        self.run.mark()
        return False, Metrics()


def main() -> None:
    run = Run(__doc__)
    torch.set_num_threads(1)
    w = run.workload
    padded = [collate(rows) for rows in all_clients(w)]
    turns = iter(range(10**9))
    data = FederatedDataset(
        lambda client: Dataset(raw_data=list(padded[client]), user_id=str(client)), lambda: next(turns) % w.clients
    )
    net = new_model(w, run.variant, Model)
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=run.total_rounds,
            evaluation_frequency=10**9,
            train_cohort_size=w.clients,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=w.lr, local_batch_size=w.batch),
        NNEvalHyperParams(local_batch_size=w.batch),
        [Mark(run)],
    )
    if SECOND:
        run.finish(net.state_dict())
        SECOND.wait(timeout=60)


if __name__ == "__main__":
    main()
