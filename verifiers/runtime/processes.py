"""A pool of processes on this machine."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from verifiers.core.errors import InputError
from verifiers.runtime.pool import Answering, Closing, End, Job, Part
from verifiers.runtime.tasks import FULL, PART, RAISED, READY, ended, opened, sent

#: Variables that limit the threads of the libraries below torch and NumPy, read when these are imported.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
#: Seconds that a process has to end by itself.
PATIENCE = 5.0


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    ready: bool = False
    task: int | None = None


class Processes(Closing):
    """New processes that open a job, used as a context manager.

    Nothing is inherited: a job is sent to each process once. Ctrl-C is for this process alone, which ends the others;
    they also end when it is killed.

    Args:
        job: what the processes do.
        workers: number of processes.
        threads: threads of each.

    Raises:
        InputError: the job cannot be pickled.
    """

    block_seconds = 0.0

    def __init__(self, job: Job, workers: int, threads: int = 1) -> None:
        self._job = sent(job)
        self._threads, self._submitted = threads, 0
        self._events: deque[Part | End] = deque()
        self._workers: list[_Worker] = []
        for _ in range(workers):
            self._workers.append(self._begun())
        for worker in self._workers:
            self._send(worker, self._job)

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.process.join(PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.connection.close()
        self._workers = []

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes."""
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    @property
    def free(self) -> int:
        """The number of processes without a task."""
        return sum(worker.task is None for worker in self._workers)

    def submit(self, task: Any) -> int:
        """Send a task to a process without one, to one that is ready if there is any; return its number."""
        idle = [worker for worker in self._workers if worker.task is None]
        worker = max(idle, key=lambda one: one.ready)
        worker.task, self._submitted = self._submitted, self._submitted + 1
        self._send(worker, pickle.dumps(task))
        return self._submitted - 1

    def receive(self) -> Part | End:
        """Wait for the next part or end of a task."""
        while not self._events:
            workers = {worker.connection: worker for worker in self._workers}
            for connection in wait(list(workers)):
                worker = workers[connection]  # type: ignore[index]
                try:
                    message = pickle.loads(worker.connection.recv_bytes())
                except (EOFError, OSError):
                    self._bury(worker)
                else:
                    self._hear(worker, *message)
        return self._events.popleft()

    def _begun(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there,), daemon=True)
        with _environment(self._threads):
            process.start()
        there.close()
        return _Worker(process, here)

    def _send(self, worker: _Worker, message: bytes) -> None:
        with suppress(OSError):  # it has ended, as receive will find
            worker.connection.send_bytes(message)

    def _hear(self, worker: _Worker, kind: int, value: Any) -> None:
        if kind == RAISED:
            raise value
        if kind == READY:
            worker.ready = True
            return
        assert worker.task is not None
        if kind == PART:
            self._events.append(Part(worker.task, value))
            return
        self._events.append(End(worker.task, lost=value, memory=kind == FULL))
        worker.task = None

    def _bury(self, worker: _Worker) -> None:
        """Put a new process in the place of one that ended; one that never was ready has none."""
        worker.process.join(PATIENCE)
        worker.connection.close()
        self._workers.remove(worker)
        code = worker.process.exitcode
        said = f"its process was killed by {_signal(-code)}" if code and code < 0 else f"its process ended with {code}"
        if worker.task is not None:
            self._events.append(End(worker.task, said, memory=code == -signal.SIGKILL, died=True))
        if worker.ready:
            self._workers.append(self._begun())
            self._send(self._workers[-1], self._job)
        elif not self._workers:
            guard = "" if code and code < 0 else "; a script calls this under if __name__ == '__main__':"
            raise InputError(f"no worker process starts: {said.removeprefix('its process ')}{guard}")


def _signal(number: int) -> str:
    """Name a signal, and say what sends it as a rule."""
    with suppress(ValueError):
        name = signal.Signals(number).name
        return f"{name}, as the system does when memory runs out" if number == signal.SIGKILL else name
    return f"signal {number}"


@contextmanager
def _environment(threads: int) -> Iterator[None]:
    """Limit the threads of new processes, and keep Ctrl-C from them."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    masks = hasattr(signal, "pthread_sigmask")
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if masks else None
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


# In the new process


def _serve(connection: Connection) -> None:
    """Open the job, and answer tasks until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(EOFError, OSError):  # the other end is closed
        job, found = connection.recv_bytes(), list[Answering]()
        kind, value = ended(lambda: found.append(opened(job)))
        if kind == RAISED:
            _tell(connection, RAISED, value)
            return
        _tell(connection, READY, None)
        while True:
            _answer(connection, found[0], connection.recv_bytes())


def _answer(connection: Connection, answer: Answering, task: bytes) -> None:
    _tell(connection, *ended(lambda: answer(pickle.loads(task), lambda value: _tell(connection, PART, value))))


def _tell(connection: Connection, kind: int, value: Any) -> None:
    connection.send_bytes(pickle.dumps((kind, value)))


def _end_with_parent() -> None:
    """End this process when the one that began it has ended, even in the middle of a block."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
