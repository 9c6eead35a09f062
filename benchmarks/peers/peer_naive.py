"""The plain loop on one thread: a copy of the model for each client, and the mean of the state dicts."""

import copy

import torch

from measure import Run
from workloads import new_model, train_client


def main() -> None:
    run = Run(__doc__)
    torch.set_num_threads(1)
    w = run.workload
    server = new_model(w, run.variant)
    run.mark()
    for _ in range(run.total_rounds):
        states, sizes = [], []
        for client in range(w.clients):
            local = copy.deepcopy(server)
            sizes.append(train_client(w, local, client))
            states.append(local.state_dict())
        shares = [size / sum(sizes) for size in sizes]
        mean = {name: sum(share * s[name] for share, s in zip(shares, states, strict=True)) for name in states[0]}
        server.load_state_dict(mean)
        run.mark()
    run.finish(server.state_dict())


if __name__ == "__main__":
    main()
