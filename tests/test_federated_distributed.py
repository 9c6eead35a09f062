"""A round's clients over several processes: the bits of one, whatever is put together."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers import same_bits, toy_config, toy_examples, toy_model, toy_rows, write_csv

from headwater.checkpoint import Checkpoint
from headwater.errors import WorkerError
from headwater.federated.aggregators import Mean, Median, WeightedMean
from headwater.federated.algorithm import FederationState, Stopping, run_rounds
from headwater.federated.asynchronous import Buffered
from headwater.federated.client_updates import LocalTraining
from headwater.federated.conditions import ConditionOptions, World
from headwater.federated.distributed import DistributedCohort, joined
from headwater.federated.methods.scaffold import Scaffold
from headwater.federated.protocols import FederatedAlgorithm
from headwater.federated.sampling import Uniform
from headwater.federated.server_optimizers import ServerSGD
from headwater.federated.simulation import LocalCohort
from headwater.model import DropoutOptions
from headwater.records import StageRecord
from headwater.weights import weights_of

CONFIG = toy_config(dropout=DropoutOptions())
WORLD = World(ConditionOptions(speed_spread=1.0, dropout_rate=0.2), 1, lambda client: 1.0)


class Piped:
    """Ranks over pipes: what goes through them is what a network would carry."""

    def __init__(self, rank, pipes):
        self.rank, self.size, self.pipes = rank, len(pipes) + 1, pipes

    def send(self, to, facts, tensors=None):
        pipe = self.pipes[to - 1 if self.rank == 0 else self.rank - 1]
        pipe.send_bytes(json.dumps(facts).encode())
        pipe.send_bytes(safetensors.torch.save({name: value.contiguous() for name, value in (tensors or {}).items()}))

    def receive(self, sender):
        pipe = self.pipes[sender - 1 if self.rank == 0 else self.rank - 1]
        return json.loads(pipe.recv_bytes()), safetensors.torch.load(pipe.recv_bytes())


def algorithm(aggregator, methods):
    return FederatedAlgorithm(
        transforms=methods,
        aggregator=aggregator,
        server_optimizer=ServerSGD(1.0, 0.5),
        sampler=Uniform(0.9, 7),
    )


def run(aggregator, methods, pace, folder, ranks=None, rows="abc", clients=21):
    """Run rounds as rank 0 does, or by itself; or serve them."""
    method = algorithm(aggregator, methods)
    train = LocalTraining(toy_model(CONFIG), CONFIG.make_task(), 1, 8, 0.3, "sgd", 1.0, methods=methods)
    given = [{f"c{n:02}": toy_examples(6 + n % 5, seed=20 + n) for n in range(clients)}, train]
    named = {"states": folder, "conditions": WORLD}
    with DistributedCohort(ranks, rows, *given, **named) if ranks else LocalCohort(*given, **named) as cohort:
        if ranks and ranks.rank:
            return cohort.serve(method, lambda: None)
        state = FederationState(weights_of(toy_model(CONFIG)))
        run_rounds(method, cohort, state, Stopping(3, keep_best=False), lambda _: {}, seed=7, pace=pace)
    return state


@pytest.fixture
def others():
    """Start a function in further processes; returns their ranks' rank 0. All are gone at the end."""
    context, started = multiprocessing.get_context("fork"), []

    def start(count, work):
        pairs = [context.Pipe() for _ in range(count)]
        theirs = [there for _, there in pairs]
        for number in range(count):
            started.append(context.Process(target=work, args=(Piped(number + 1, theirs),), daemon=True))
            started[-1].start()
        return Piped(0, [here for here, _ in pairs])

    yield start
    for process in started:
        process.kill()
        process.join()


@pytest.mark.parametrize(("count", "clients"), [(1, 21), (2, 21), (4, 3)])
@pytest.mark.parametrize(
    ("aggregator", "methods", "buffered"),
    [
        (WeightedMean(), lambda: [Scaffold(21)], False),
        (Median(), list, False),
        (Mean(), list, True),
    ],
)
def test_the_number_of_ranks_changes_no_bit(aggregator, methods, buffered, count, clients, others, tmp_path):
    torch.set_num_threads(1)

    def shared(pace, *ranks):
        return run(aggregator, methods(), pace, tmp_path / ("shared" if ranks else "alone"), *ranks, clients=clients)

    def pace():
        return Buffered(3, 8, Uniform(0.9, 7), WORLD) if buffered else None

    alone = shared(pace())
    together = shared(pace(), others(count, lambda rank: shared(None, rank)))
    assert same_bits(together.weights, alone.weights)
    assert together.records == alone.records
    assert clients < 21 or any(row.failed for row in alone.records)


def test_a_rank_that_has_other_rows_or_hears_of_a_failure_ends_with_a_word(others, tmp_path):
    said = multiprocessing.get_context("fork").SimpleQueue()

    def serve(ranks):
        try:
            run(Mean(), [], None, tmp_path, ranks, rows="other")
        except WorkerError as error:
            said.put(str(error))

    ranks = others(2, serve)
    ranks.send(1, {"end": "there is no such file"})
    assert said.get() == "the first process that torchrun has started has failed: there is no such file"
    ranks.send(2, {"rows": "abc"})
    assert "other rows here" in said.get()


def test_without_torchrun_there_are_no_ranks():
    with joined() as ranks:
        assert ranks is None


def torchrun(*arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "headwater", *arguments]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def of_rank(number, out):
    """Return the process of a rank: the eldest one that torchrun has started with it."""
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            variables, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"RANK={number}".encode() in variables.split(b"\0") and str(out).encode() in command:
            return int(process.name)
    raise AssertionError(f"no rank {number}")


@pytest.mark.e2e
def test_torchrun_gives_the_bits_of_one_process_and_of_a_killed_run(source_folder, tmp_path):
    for name, count in {"train": 300, "test": 60}.items():
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed=count, clients=12))
    files = ["--data", str(tmp_path / "train.csv"), "--test", str(tmp_path / "test.csv"), "--client", "client"]
    given = ["federate", str(source_folder), *files, "--cohort", "10", "--rounds", "40", "--valid", "0.3"]
    given += [
        "--no-controls",
        "--device",
        "cpu",
        "--processes",
        "1",
        "--method",
        "scaffold",
        "--aggregator",
        "mean",
        "--quiet",
    ]
    partial = tmp_path / "two.partial"
    killed = torchrun(*given, "--out", str(tmp_path / "two"))
    end = time.monotonic() + 100
    while not (partial / ".state.safetensors").exists():
        assert killed.poll() is None, killed.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(of_rank(1, tmp_path / "two"), signal.SIGKILL)
    _, errors = killed.communicate(timeout=100)
    assert killed.returncode != 0
    assert "headwater: error: another process that torchrun has started has ended" in errors
    assert "--resume" in errors
    resumed = torchrun(*given, "--out", str(tmp_path / "two"), "--resume")
    shown, errors = resumed.communicate(timeout=100)
    assert resumed.returncode == 0, errors
    assert shown.count("federate done") == 1
    alone = [sys.executable, "-m", "headwater", *given, "--out", str(tmp_path / "one")]
    subprocess.run(alone, check=True, capture_output=True, timeout=100)
    one, two = Checkpoint.load(tmp_path / "one"), Checkpoint.load(tmp_path / "two")
    assert one.identity == two.identity
    assert StageRecord.load(tmp_path / "one").rounds == StageRecord.load(tmp_path / "two").rounds
