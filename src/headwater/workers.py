"""Processes that work beside this one, a core each, and memory that they share with it.

They are forked: they see everything that this process has prepared, without copies, and a user's own functions need
not be importable. Shared memory has no name in the system, so nothing of it can be left behind; a worker dies with its
parent, however that ends.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import platform
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch

from headwater.errors import WorkerError
from headwater.own_process import keep_memory
from headwater.weights import Weights

_ALIGNMENT = 64
"""Bytes; a tensor starts with a cache line."""


class Workers:
    """Worker processes that answer tasks.

    Args:
        count: How many.
        work: Called in a worker with a task; returns the answer. Task and answer are plain, small values; tensors go
            through `shared_weights`.
    """

    def __init__(self, count: int, work: Callable[[Any], Any]) -> None:
        # A cycle of garbage collected in a child would touch, and so copy, the pages it shares with this process.
        gc.collect()
        context = multiprocessing.get_context("fork")
        self._listening = False
        self._processes: dict[Connection, multiprocessing.process.BaseProcess] = {}
        for _ in range(count):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, [*self._processes, here], work, os.getpid()), daemon=True
            )
            process.start()
            there.close()
            self._processes[here] = process

    def answers(self, tasks: Sequence[Any], meanwhile: Callable[[], None] = lambda: None) -> Iterator[tuple[int, Any]]:
        """Yield the number of each task and its answer, as they come; a free worker takes the next task.

        Args:
            tasks: In the order in which they are given out.
            meanwhile: Called once, when each worker has a task or no more are left.

        Raises:
            WorkerError: A worker has died.
            Exception: What `work` raised. After any error the workers are gone.
        """
        if self._listening:
            raise RuntimeError("the workers' last answers are still being read: finish or close that first")
        self._listening = True
        waiting = deque(enumerate(tasks))
        free = list(self._processes)
        busy: dict[Connection, int] = {}

        def give_out() -> None:
            while waiting and free:
                connection = free.pop()
                busy[connection], task = waiting.popleft()
                try:
                    connection.send(task)
                except OSError:
                    raise self._death(connection) from None

        try:
            give_out()
            meanwhile()
            while busy:
                ready = wait(list(busy))
                for connection in [connection for connection in busy if connection in ready]:
                    number = busy.pop(connection)
                    answer = self._receive(connection)
                    free.append(connection)
                    give_out()
                    yield number, answer
        except BaseException:  # whoever stops listening leaves answers behind that would come as those of other tasks
            self.close()
            raise
        finally:
            self._listening = False

    @property
    def alive(self) -> bool:
        """Whether tasks can be given."""
        return bool(self._processes)

    def close(self) -> None:
        """End the workers."""
        for process in self._processes.values():
            process.kill()
        for connection, process in self._processes.items():
            process.join()
            connection.close()
        self._processes = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self, connection: Connection) -> Any:
        failure = ""
        try:
            failure = connection.recv()
            answer = connection.recv()
        except (EOFError, OSError):
            raise self._death(connection) from None
        except Exception as error:
            raise WorkerError(f"a worker process failed: {failure}") from error
        if failure:
            raise answer if isinstance(answer, Exception) else WorkerError(f"a worker process failed: {failure}")
        return answer

    def _death(self, connection: Connection) -> WorkerError:
        process = self._processes[connection]
        process.join()
        code = process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = ", perhaps for want of memory: take fewer --processes" if code == -signal.SIGKILL else ""
        return WorkerError(f"a worker process died ({how}{hint})")


def can_fork() -> bool:
    """Return whether forked workers can train: where there is a GPU, autograd keeps threads that no fork survives."""
    return not torch.cuda.is_available()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread within."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def shared_weights(like: Weights) -> Weights:
    """Return zero weights of the same names, shapes and types, in one buffer shared with workers forked later."""
    sizes = {name: -(-value.numel() * value.element_size() // _ALIGNMENT) * _ALIGNMENT for name, value in like.items()}
    memory = mmap.mmap(-1, max(1, sum(sizes.values())))
    made, offset = {}, 0
    for name, value in like.items():
        if not value.numel():  # there is nothing to share
            made[name] = value.clone()
            continue
        flat = torch.frombuffer(memory, dtype=value.dtype, count=value.numel(), offset=offset)
        made[name] = flat.view(value.shape)
        offset += sizes[name]
    return made


def _serve(connection: Connection, others: list[Connection], work: Callable[[Any], Any], parent: int) -> None:
    """Answer tasks until the parent hangs up."""
    # Ctrl-C reaches the whole group: the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    for other in others:
        other.close()
    gc.freeze()
    keep_memory()
    torch.set_num_threads(1)
    while True:
        try:
            _answer(connection, work, connection.recv())
        except (EOFError, OSError):  # the parent has gone
            return


def _answer(connection: Connection, work: Callable[[Any], Any], task: Any) -> None:
    """Send what went wrong, in words, and then the answer or the error itself."""
    failure: Exception | None = None
    answer: Any = None
    try:
        answer = work(task)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        error.add_note("".join(traceback.format_tb(error.__traceback__)))
        failure = error
    if failure is None:
        connection.send("")
        connection.send(answer)
        return
    connection.send(f"{type(failure).__name__}: {failure}")
    try:
        connection.send(failure)
    except Exception:  # noqa: BLE001 - an error of any class may refuse to be sent in any way; the words have gone ahead
        connection.send(None)


def _die_with(parent: int) -> None:
    if platform.system() == "Linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the signal was set
        os._exit(1)
