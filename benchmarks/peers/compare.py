"""Runs the peers in turn and prints a Markdown table of their times and their ratios.

A peer is named by its script and, if it isn't the first, its variant: ``naive``, ``naive-padded``,
``headwater-bfloat16``. Every repeat runs every peer once, beginning with another one each time, so that a busy
neighbour or a warm machine favours nobody. All figures of a run go to ``runs.jsonl`` in the output folder.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np
import psutil

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("HEADWATER_BENCH_VENVS", HERE / ".venvs"))
ENVIRONMENT_OF = {"naive": "base", "floor": "base"}  # the others' have their own names
PEERS = [
    *("naive", "naive-padded", "flower", "flower-padded", "pfl", "pfl-padded", "blazefl", "blazefl-padded"),
    "headwater",
]
QUIET = 0.15
"""A machine is idle below this share of its processors."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", type=_names, default=["S", "M", "XS"])
    parser.add_argument("--peers", type=_names, default=PEERS)
    parser.add_argument("--over", type=_names, default=["naive", "flower", "pfl"], help="the peers to give ratios to")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--warmup", type=int)
    parser.add_argument("--out", type=Path, default=HERE / "results", help="a folder; new runs join the old ones")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for a quiet machine before a run")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds that a run may take")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs in --out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    runs = options.out / "runs.jsonl"
    if not options.table:
        for repeat in range(options.repeats):
            turn = repeat % len(options.peers)
            for workload in options.workloads:
                for peer in options.peers[turn:] + options.peers[:turn]:
                    if row := run_peer(peer, workload, options):
                        with runs.open("a") as file:
                            file.write(json.dumps(row) + "\n")
    rows = [json.loads(line) for line in runs.read_text().splitlines()] if runs.exists() else []
    for workload in options.workloads:
        print_table(workload, [row for row in rows if row["workload"] == workload], options)


def run_peer(peer: str, workload: str, options: argparse.Namespace) -> dict | None:
    """Run a peer once; return its figures, or None and say why there are none."""
    script, _, variant = peer.partition("-")
    python = ENVIRONMENTS / ENVIRONMENT_OF.get(script, script) / "bin" / "python"
    if not python.exists():
        print(f"{peer}: there is no {python}", file=sys.stderr)
        return None
    busy = wait_for_quiet(options.patience)
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [python, HERE / f"peer_{script}.py", "--workload", workload, "--row", figures]
        command += ["--parameters", parameters_file(options.out, workload, peer).absolute()]
        command += ["--variant", variant] if variant else []
        for name in ("rounds", "warmup"):
            if getattr(options, name) is not None:
                command += [f"--{name}", str(getattr(options, name))]
        log = Path(folder) / "log"
        with log.open("w") as output:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment)
            try:
                process.wait(options.timeout)
            except subprocess.TimeoutExpired:
                for child in [*psutil.Process(process.pid).children(recursive=True), process]:
                    child.kill()
                process.wait()
        if process.returncode or not figures.exists():
            print(f"{peer} {workload} failed: {process.returncode}\n{log.read_text()[-1500:]}", file=sys.stderr)
            return None
        row = {"peer": peer, "busy": busy, **json.loads(figures.read_text())}
    print(f"{workload} {peer}: {median(row['wall']):.3f} s a round, loss {row['loss']}", file=sys.stderr)
    return row


def wait_for_quiet(patience: float) -> float:
    """Wait until the machine is idle, or patience ends; return the share of it that is busy."""
    end = time.monotonic() + patience
    while (busy := psutil.cpu_percent(0.5) / 100) > QUIET and time.monotonic() < end:
        pass
    return round(busy, 2)


def print_table(workload: str, rows: list[dict], options: argparse.Namespace) -> None:
    """Print the medians over all measured rounds of all repeats."""
    of_peer = defaultdict(list)
    for row in rows:
        of_peer[row["peer"]].append(row)
    wall = {peer: [x for row in its for x in row["wall"]] for peer, its in of_peer.items()}
    cpu = {peer: median(x for row in its for x in row["cpu"]) for peer, its in of_peer.items()}
    over = [base for base in options.over if base in of_peer]
    heads = ["peer", "s a round: median (least)", "CPU s a round", *(f"x {base}: wall (CPU)" for base in over)]
    heads += ["start-up + warm-up s", "peak MB", "largest difference"]
    print(f"\n### {workload}\n\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}")
    for peer in [*dict.fromkeys([*options.peers, *of_peer])]:
        if not (its := of_peer.get(peer)):
            continue
        now = median(wall[peer])
        cells = [peer, f"{now:.3f} ({min(wall[peer]):.3f})", f"{cpu[peer]:.3f}"]
        cells += [f"{median(wall[base]) / now:.2f} ({cpu[base] / cpu[peer]:.2f})" for base in over]
        cells += [f"{median(row['startup'] for row in its):.1f} + {median(row['warmup'] for row in its):.1f}"]
        cells += [f"{median(row['peak_mb'] for row in its):.0f}", difference(options.out, workload, peer)]
        print(f"| {' | '.join(cells)} |")
    busy = [row["busy"] for row in rows]
    if busy:
        print(f"\nThe machine was busy before a run: {median(busy):.0%} (median), {max(busy):.0%} (most).")
    for peer, its in of_peer.items():
        if kernels := its[-1].get("kernels"):
            print(f"\n{peer} ran with kernels: {kernels}.")


def difference(out: Path, workload: str, peer: str) -> str:
    """Return the largest difference of a final parameter to naive's."""
    files = [parameters_file(out, workload, name) for name in ("naive", peer)]
    if peer == "floor" or not all(file.exists() for file in files):
        return ""
    ours, theirs = (np.load(file) for file in files)
    return f"{np.abs(ours - theirs).max():.0e}" if ours.shape == theirs.shape else "shape"


def parameters_file(out: Path, workload: str, peer: str) -> Path:
    """Return where a peer's final parameters are kept."""
    return out / f"{workload}.{peer}.npy"


def _names(text: str) -> list[str]:
    return text.split(",")


if __name__ == "__main__":
    main()
