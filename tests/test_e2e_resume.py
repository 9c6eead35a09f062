"""Whole processes, killed after a save or inside a round, resume to the same bits; interrupted, they say what to do."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from headwater.checkpoint import MODEL_FILE
from headwater.files import sha256_file
from headwater.records import StageRecord
from headwater.resume_state import load_state

pytestmark = pytest.mark.e2e

DRIVER = """
import signal, sys
import headwater.trainer
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
headwater.trainer.AUTOSAVE_SECONDS = -1.0  # save after each step
from headwater.cli import main
sys.exit(main(sys.argv[1:]))
"""


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out


def worker_of(process):
    """Return the process id of one of a command's workers; they are its only children."""
    return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])


def state_of(out):
    return out.with_name(out.name + ".partial") / ".state.safetensors"


def saved(out):
    """Return when a command saved its state; None if it never did."""
    state = state_of(out)
    return state.stat().st_mtime_ns if state.exists() else None


def kept(out):
    """Return the newest round that a client has kept something of, if a round was saved before that."""
    rounds = [int(path.stem) for path in state_of(out).parent.glob(".clients/*/*/[0-9]*.safetensors")]
    newest = max(rounds, default=0)
    return newest if newest > 1 else None


def stopped(command, out, number, whom=lambda process: process.pid, moment=saved):
    """Start a command, send it or one of its workers a signal at the next of such moments; return its words."""
    before = moment(out)
    process = start(*command)
    while process.poll() is None and moment(out) in (None, before):
        time.sleep(0.002)
    if process.poll() is None:
        os.kill(whom(process), number)
    _, err = process.communicate()  # ends when nobody has the pipes any more: neither the command nor its workers
    assert state_of(out).exists(), err
    assert not out.exists()
    return process.returncode, err


def pretraining(folder, out, *more):
    sizes = ["--hidden-size", 16, "--embedding-size", 16, "--layers", 2, "--batch-size", 8]
    return ["pretrain", "--data", folder / "train.csv", "--valid", 0.3, "--out", out, "--epochs", 8, *sizes, *more]


def federation(folder, source, out, *more):
    rounds = ["--rounds", 40, "--participation", 1.0, "--batch-size", 4, "--valid", 0.3]
    return ["federate", source, "--data", folder / "train.csv", "--client", "client", "--out", out, *rounds, *more]


STREAMS = ["--task", "language_modeling", "--no-bidirectional", "--bptt", 5]


@pytest.mark.parametrize("options", [[], ["--processes", 2, "--accumulate", 2], STREAMS])
def test_a_training_that_is_killed_twice_and_resumed_has_the_same_bits(data, tmp_path, options):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    options = ["--patience", 0, *options]
    finish(start(*pretraining(data, whole, *options)))
    for more in ([], ["--resume"]):
        code, _ = stopped(pretraining(data, out, *options, *more), out, signal.SIGKILL)
        assert code == -signal.SIGKILL
    refused = start(*pretraining(data, out, *options))
    assert refused.wait() == 2
    assert "add --resume to continue it" in refused.communicate()[1]
    finish(start(*pretraining(data, out, *options, "--resume")))
    assert sha256_file(out / MODEL_FILE) == sha256_file(whole / MODEL_FILE)
    assert StageRecord.load(out).curves == StageRecord.load(whole).curves
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in whole.iterdir())


def files(folder):
    """Return the digest of each file of tensors: the model, and what each client keeps."""
    return {path.relative_to(folder): sha256_file(path) for path in folder.rglob("*.safetensors")}


STATEFUL = [
    "--method",
    "scaffold",
    "--aggregator",
    "mean",
    "--codec",
    "int8",
    "--error-feedback",
    "--personal",
    "ditto",
]


BUFFERED = ["--buffer", 3, "--concurrency", 5, "--speed-spread", 1, "--aggregator", "mean", "--no-controls"]


@pytest.mark.parametrize(
    ("whom", "moment", "options"), [("worker", saved, []), ("parent", kept, STATEFUL), ("parent", saved, BUFFERED)]
)
def test_a_federation_that_is_killed_twice_and_resumed_has_the_same_bits(
    data, source_folder, tmp_path, whom, moment, options
):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    inside = []
    options = [*options, "--processes", 2]
    finish(start(*federation(data, source_folder, whole, *options)))
    for more in ([], ["--resume"]):
        command = federation(data, source_folder, out, *options, *more)
        if whom == "parent":
            code, _ = stopped(command, out, signal.SIGKILL, moment=moment)
            assert code == -signal.SIGKILL
        else:
            code, err = stopped(command, out, signal.SIGKILL, worker_of, moment)
            assert code not in (0, -signal.SIGKILL)
            assert "a worker process died" in err
            assert "Traceback" not in err
        if moment is kept:
            inside.append(kept(out) > load_state(state_of(out))[1]["round"])
    assert moment is saved or any(inside)  # on a busy machine one of two may come too late
    finish(start(*federation(data, source_folder, out, *options, "--resume")))
    assert files(out) == files(whole)
    assert StageRecord.load(out).rounds == StageRecord.load(whole).rounds
    assert StageRecord.load(out).controls == StageRecord.load(whole).controls


@pytest.mark.parametrize("processes", [1, 2])
def test_an_interruption_ends_with_130_and_the_way_to_go_on(data, tmp_path, processes):
    out = tmp_path / "m"
    code, err = stopped(pretraining(data, out, "--processes", processes), out, signal.SIGINT)
    assert code == 130
    assert err.splitlines()[-1] == "headwater: interrupted; the same command with --resume continues"
    assert "Traceback" not in err
    finish(start(*pretraining(data, out, "--processes", processes, "--resume")))
    assert out.exists()


@pytest.mark.parametrize("command", [["--version"], ["pretrain", "--help"]])
def test_a_reader_that_goes_away_is_no_error(command):
    process = start(*command)
    process.stdout.close()
    assert process.wait() == 0
    assert process.stderr.read() == ""
    process.stderr.close()
