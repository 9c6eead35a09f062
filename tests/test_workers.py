"""Worker processes: answers, errors, deaths, and nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from headwater.errors import FederationError, WorkerError
from headwater.workers import Workers, shared_weights


def left():
    return [process for process in multiprocessing.active_children() if process.is_alive()]


def named_memory():
    folder = Path("/dev/shm")  # noqa: S108 - where the system shows it
    return set(folder.iterdir()) if folder.is_dir() else set()


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_every_task_is_answered_once_by_more_than_one_process():
    with Workers(2, lambda task: (task * task, os.getpid())) as workers:
        for _ in range(2):
            answers = dict(workers.answers(range(20)))
            assert {number: square for number, (square, _) in answers.items()} == {n: n * n for n in range(20)}
            assert os.getpid() not in {pid for _, pid in answers.values()}
        assert workers.alive
    assert not left()


def test_meanwhile_this_process_does_something_once():
    done = []
    with Workers(2, lambda task: task) as workers:
        for count in (0, 1, 5):
            assert sorted(workers.answers(range(count), meanwhile=lambda: done.append(os.getpid()))) == [
                (number, number) for number in range(count)
            ]
        assert done == [os.getpid()] * 3
        with pytest.raises(KeyError, match="here"):
            list(workers.answers([1, 2], meanwhile=lambda: {}["here"]))
        assert not workers.alive
    assert not left()


def test_what_work_raises_is_raised_here_and_the_workers_are_gone():
    def work(task):
        raise FederationError("is too far", client="eve", round_number=task, stage="train")

    workers = Workers(2, work)
    with pytest.raises(FederationError, match="client 'eve', round 3, train: is too far") as caught:
        list(workers.answers([3]))
    assert (caught.value.client, caught.value.round_number) == ("eve", 3)
    assert "in work" in "".join(caught.value.__notes__)
    assert not workers.alive
    assert not left()


def test_an_error_that_cannot_be_sent_is_told():
    class StrangeError(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def work(task):
        raise StrangeError(1, task)

    with pytest.raises(WorkerError, match="StrangeError: 1 and 2"):
        list(Workers(1, work).answers([2]))


def test_a_killed_worker_is_an_error_that_says_how_it_died():
    workers = Workers(2, lambda task: os.kill(os.getpid(), signal.SIGKILL) if task == 1 else task)
    with pytest.raises(WorkerError, match="killed by SIGKILL, perhaps for want of memory"):
        list(workers.answers(range(5)))
    assert not left()


def test_a_worker_found_dead_is_an_error_that_says_so():
    workers = Workers(1, lambda _: os.getpid())
    ((_, pid),) = workers.answers([0])
    os.kill(pid, signal.SIGKILL)
    while not gone(pid):
        time.sleep(0.01)
    with pytest.raises(WorkerError, match="died .killed by SIGKILL"):
        list(workers.answers([0]))
    assert not left()


def test_two_who_listen_at_once_are_refused():
    with Workers(1, lambda task: task) as workers:
        one = workers.answers([1, 2])
        next(one)
        with pytest.raises(RuntimeError, match="still being read"):
            next(workers.answers([3]))


def test_leaving_early_ends_the_workers():
    workers = Workers(2, lambda task: task)
    answers = workers.answers(range(10))
    next(answers)
    answers.close()
    assert not workers.alive
    assert not left()


def test_weights_are_shared_both_ways_and_have_no_name_in_the_system():
    like = {"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.float64), "c": torch.zeros(())}
    before = named_memory()
    weights = shared_weights(like)
    assert {name: (value.shape, value.dtype) for name, value in weights.items()} == {
        name: (value.shape, value.dtype) for name, value in like.items()
    }
    assert all(value.data_ptr() % 64 == 0 for value in weights.values())

    def work(task):
        weights["b"][task] = weights["a"][1, 1]

    with Workers(2, work) as workers:
        weights["a"].fill_(7.0)
        list(workers.answers([0, 4]))
        assert weights["b"].tolist() == [7.0, 0.0, 0.0, 0.0, 7.0]
        assert named_memory() == before


def test_workers_compute_with_one_thread():
    with Workers(1, lambda _: torch.get_num_threads()) as workers:
        assert list(workers.answers([None])) == [(0, 1)]


def test_settled_processes_keep_float32_products_exact():
    code = """
import torch
from headwater.own_process import settle, settled
settle()
a = torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
exact = a.double() @ a.double().t()
print(settled())
print(float((a @ a.t() - exact).norm() / exact.norm()) < 1e-6)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True"] * 2


PARENT = """
import os, sys, time
from headwater.workers import Workers
workers = Workers(2, lambda task: (os.write(1, f'{os.getpid()}\\n'.encode()), time.sleep(60)))
list(workers.answers([0, 1]))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_however_the_parent_ends_its_workers_end_too(number):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + PARENT
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(number)
    parent.communicate()
    while not all(map(gone, pids)):  # the system needs a moment; a worker that stays would hang here
        time.sleep(0.01)
