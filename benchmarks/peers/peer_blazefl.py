"""BlazeFL's thread pool, two threads. It is at its best on a Python without the GIL."""

import copy
import threading
from dataclasses import dataclass

import torch
from blazefl.core import ThreadPoolClientTrainer, deserialize_model, serialize_model

from measure import Run
from workloads import Workload, new_model, train_client


@dataclass
class Package:
    """Parameters on their way, and the rows behind them."""

    parameters: torch.Tensor
    rows: int = 0


class Trainer(ThreadPoolClientTrainer[Package, Package]):
    """Trains the clients of a round."""

    def __init__(self, w: Workload, variant: str) -> None:
        self.workload = w
        self.template = new_model(w, variant)
        self.num_parallels, self.device, self.device_count = 2, "cpu", 0
        self.cache, self.stop_event = [], threading.Event()

    def worker(self, cid: int, device: str, payload: Package, stop_event: threading.Event) -> Package:  # noqa: ARG002 - BlazeFL's interface
        model = copy.deepcopy(self.template)
        deserialize_model(model, payload.parameters)
        rows = train_client(self.workload, model, cid)
        return Package(serialize_model(model), rows)

    def uplink_package(self) -> list[Package]:
        packages, self.cache = self.cache, []
        return packages


def main() -> None:
    run = Run(__doc__)
    torch.set_num_threads(1)
    w = run.workload
    trainer = Trainer(w, run.variant)
    server = new_model(w)
    run.mark()
    for _ in range(run.total_rounds):
        trainer.local_process(Package(serialize_model(server)), list(range(w.clients)))
        packages = trainer.uplink_package()
        total = sum(package.rows for package in packages)
        mean = torch.zeros_like(packages[0].parameters)
        for package in packages:  # as BlazeFL's own FedAvg
            mean += package.parameters * (package.rows / total)
        deserialize_model(server, mean)
        run.mark()
    run.finish(server.state_dict())


if __name__ == "__main__":
    main()
