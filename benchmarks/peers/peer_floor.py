"""No federation: one model on all rows, padded, rows of like length together, batches made once; one thread.

How fast plain torch gets at best. Other batches than the peers', so its parameters differ from theirs.
"""

import numpy as np
import torch

from measure import Run
from workloads import all_clients, collate, new_model


def main() -> None:
    run = Run(__doc__, ("padded",))
    torch.set_num_threads(1)
    w = run.workload
    rows = sorted((row for client in all_clients(w) for row in client), key=lambda row: len(row[0]))
    batches = [collate(rows[start : start + w.batch]) for start in range(0, len(rows), w.batch)]
    order = np.random.default_rng(0).permutation(len(batches))
    model = new_model(w, run.variant)
    optimizer = torch.optim.SGD(model.parameters(), lr=w.lr)
    run.mark()
    for _ in range(run.total_rounds):
        for number in order:
            optimizer.zero_grad()
            model.loss(*batches[number]).backward()
            optimizer.step()
        run.mark()
    run.finish(model.state_dict())


if __name__ == "__main__":
    main()
