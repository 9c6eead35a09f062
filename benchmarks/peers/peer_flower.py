"""Flower's simulation on Ray: two actors of one processor each, the message interface, its own FedAvg."""

import logging
import os
from pathlib import Path

# Before the imports: read by Flower and Ray as they start. Actors import this folder's modules.
os.environ |= {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
}

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from measure import Run
from workloads import Workload, new_model, train_client


def client_app(w: Workload, variant: str) -> ClientApp:
    """Return what a client does; its rows are made once an actor."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        model = new_model(w, variant)
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        rows = train_client(w, model, int(context.node_config["partition-id"]))
        answer = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": rows})}
        return Message(RecordDict(answer), reply_to=message)

    return app


def main() -> None:
    run = Run(__doc__)
    logging.disable(logging.INFO)
    w = run.workload
    final = {}
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's interface
        strategy = FedAvg(
            fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=w.clients, min_available_nodes=w.clients
        )

        def after_round(number: int, arrays: ArrayRecord) -> MetricRecord:
            """Flower calls it before the first round too."""
            run.mark()
            if number == run.total_rounds:
                final.update(arrays.to_torch_state_dict())
            return MetricRecord({"round": number})

        start = ArrayRecord(new_model(w).state_dict())
        strategy.start(grid=grid, initial_arrays=start, num_rounds=run.total_rounds, evaluate_fn=after_round)

    run_simulation(
        server_app=server,
        client_app=client_app(w, run.variant),
        num_supernodes=w.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "logging_level": "ERROR", "log_to_driver": False},
        },
    )
    run.finish(final)


if __name__ == "__main__":
    main()
