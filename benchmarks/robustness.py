"""Print what aggregators hold against attacks: `python benchmarks/robustness.py CHECKPOINT TRAIN TEST CLIENT OUT`.

CHECKPOINT is a small pre-trained model, CLIENT the column of TRAIN and TEST that names the clients, OUT a folder for
the federations; those that it has are kept. Each cell is the accuracy on the test rows, of the backdoor with the share
of rows that it turns. For instance, in the folder that holds the data sets, from the model of the journey hotel_en:

    python .../benchmarks/robustness.py OUT/imdb hotel_en/train.jsonl.gz hotel_en/test.jsonl.gz hotel OUT/robust
"""

import argparse
from pathlib import Path

from headwater.checkpoint import Checkpoint
from headwater.errors import FederationError
from headwater.federated import AGGREGATORS, ATTACKS
from headwater.federated.options import FederateOptions
from headwater.federated.verb import federate
from headwater.records import StageRecord


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "train", "test", "client", "out"):
        parser.add_argument(name, type=Path if name in ("checkpoint", "out") else str)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rows", type=int, default=0, help="training rows; 0 takes all")
    parser.add_argument("--participation", type=float, default=1.0)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=list(ATTACKS))
    parser.add_argument("--aggregators", nargs="+", default=list(AGGREGATORS), choices=list(AGGREGATORS))
    parser.add_argument("--attack-scale", type=float, default=None)
    return parser.parse_args()


def measured(given, aggregator, attack, share):
    """Return the record of a federation whose aggregator is told the true share of attackers, if there are any."""
    told = min(share, 0.49) or 0.2
    options = {"data": given.train, "test": given.test, "client": given.client, "rows": given.rows}
    options |= {"rounds": given.rounds, "participation": given.participation, "controls": False, "quiet": True}
    options |= {"aggregator": aggregator, "trim": told, "hostile": told, "attack": attack}
    options |= {"attackers": share, "attack_scale": given.attack_scale} if share else {}
    out = given.out / f"{aggregator}-{attack}-{share:g}"
    federate(Checkpoint.load(given.checkpoint), FederateOptions(**options, out=out, resume=True))
    return StageRecord.load(out)


def cell(given, aggregator, attack, share):
    try:
        metrics = measured(given, aggregator, attack, share).metrics
    except FederationError:  # such as: the loss is no longer finite
        return "failed"
    turned = f" ({metrics[attack]['success_rate']:.2f})" if attack in metrics else ""
    return f"{metrics['test']['accuracy']:.3f}{turned}"


def main():
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    columns = [(attack, share) for share in given.shares for attack in given.attacks]
    print("| aggregator | nobody |", *(f"{attack} {share:.0%} |" for attack, share in columns))
    print("| --- |", " --- |" * (1 + len(columns)))
    for aggregator in given.aggregators:
        cells = [cell(given, aggregator, attack, share) for attack, share in [("none", 0.0), *columns]]
        print(f"| {aggregator} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
