"""A pool of Dask workers, wherever they are.

A job travels as a worker plugin: each worker gets it once, also one that joins later. A worker answers one task at a
time, in a thread of its own; messages come back through a queue of the scheduler.
"""

import pickle
import uuid
import warnings
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import count
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Thread
from time import sleep
from typing import Any, cast

from distributed import Client, Event, Future, KilledWorker, Queue, Worker, WorkerPlugin, get_client, get_worker

from verifiers.core.errors import InputError, one_line
from verifiers.runtime.code import code_of
from verifiers.runtime.deadline import now
from verifiers.runtime.pool import Answering, Closing, End, Job, Part
from verifiers.runtime.tasks import FULL, PART, RAISED, READY, ended, opened, sent

#: Seconds after which the pool looks whether tasks were lost, while it waits for messages.
PATIENCE = 1.0
#: Looks after which a task that is done and says nothing is lost.
SILENT = 5
#: The number of no task.
NOBODY = -1
#: A kind of message: the task is with another worker, which has ended.
AGAIN = -1
#: Where Dask tells of workers that it ends for their memory.
MEMORY_TOPIC = "worker-restart-memory"


# At the worker


class Stopped(BaseException):
    """The pool that gave a task is closed."""


class Untold(ConnectionError):
    """A message did not reach the scheduler: the task is lost."""


class Desk(WorkerPlugin):
    """A job at a worker, and the thread that does it.

    Args:
        job: pickled.
        code: of the process that sends it.
    """

    def __init__(self, job: bytes, code: str) -> None:
        self._job, self._code = job, code

    def __getstate__(self) -> dict[str, Any]:
        return {"_job": self._job, "_code": self._code}

    def setup(self, worker: Worker) -> None:
        """Prepare the thread; the job is opened when the first task comes."""
        self._worker, self._stopped = worker.address, Flag()
        self._thread = ThreadPoolExecutor(1, "certkd")
        self._found: list[Answering] = []

    def teardown(self, worker: Worker) -> None:
        """End with the next message."""
        self._stopped.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def answer(self, task: bytes, begin: Callable[[], bool], tell: Callable[[int, Any], None]) -> None:
        """Answer a task in the thread, once ``begin`` says so; ``tell`` takes the kind and value of a message."""
        self._thread.submit(self._answer, task, begin, tell).result()

    def _answer(self, task: bytes, begin: Callable[[], bool], tell: Callable[[int, Any], None]) -> None:
        if not begin():
            return

        def send(value: Any) -> None:
            if self._stopped.is_set():
                raise Stopped
            tell(PART, value)

        kind, value = ended(self._open)
        if kind != RAISED:
            kind, value = ended(lambda: self._found[0](pickle.loads(task), send))
        if not self._stopped.is_set():
            tell(kind, value)

    def _open(self) -> None:
        if self._found:
            return
        if self._code != code_of():
            raise InputError(f"{self._worker} has {code_of()}, but this process {self._code}: install the same there")
        self._found.append(opened(self._job))


def answer(name: str, task: int, given: bytes) -> None:
    """Answer a task at a worker, unless another one began it.

    Messages are lists: the task, the number of the message, its kind and its value. The first has the worker's address.
    """
    worker, client, numbers = get_worker(), get_client(), count()
    queue, begun = Queue(name, client), Event(f"{name}-{task}", client)

    def tell(kind: int, value: Any) -> None:
        try:
            queue.put([task, next(numbers), kind, pickle.dumps(value)])
        except Exception as error:  # Dask's are of many classes
            raise Untold(one_line(error)) from error

    def begin() -> bool:
        if begun.is_set():
            tell(AGAIN, "")
            return False
        begun.set()
        tell(READY, worker.address)
        return True

    with closing(queue):
        cast(Desk, worker.plugins[name]).answer(given, begin, tell)


# At the process that asks


@dataclass
class _Task:
    future: Future
    worker: str = ""
    heard: int = 0
    silent: int = 0


class Cluster(Closing):
    """Dask workers that open a job, used as a context manager.

    Workers may join and leave. A task whose worker ends is lost, however often the scheduler would try it; so are all
    open tasks when the scheduler ends, even if it comes back.

    Args:
        job: what the workers do.
        client: of a scheduler that has a worker.

    Raises:
        InputError: the job cannot be pickled.
    """

    block_seconds = 10.0

    def __init__(self, job: Job, client: Client) -> None:
        self._client, self._desk = client, Desk(sent(job), code_of())
        self._name, self._submitted = f"certkd-{uuid.uuid4().hex}", 0
        self._tasks, self._events = dict[int, _Task](), deque[Part | End]()
        self._full, self._inbox = set[str](), SimpleQueue[Any]()
        self._workers, self._looked = 1, now()
        client.subscribe_topic(MEMORY_TOPIC, lambda event: self._full.add(event[1]["worker"]))
        self._begin()

    def _begin(self) -> None:
        """Take the job to the workers, and open the queue of their messages.

        Raises:
            InputError: workers end again and again while they are given the job.
        """
        for _ in range(SILENT):
            try:
                self._client.register_plugin(self._desk, name=self._name)
                break
            except OSError as error:  # a worker ended meanwhile
                why = one_line(error)
                sleep(PATIENCE)
        else:
            raise InputError(f"the workers of the cluster end before they have the job ({why}): run the command again")
        self._queue = Queue(self._name, self._client)
        Thread(target=self._read, args=(self._queue,), daemon=True).start()
        self._count()

    def _read(self, queue: Queue) -> None:
        """Take messages until the client or the scheduler ends; then say so."""
        with suppress(Exception):  # whatever the one that ends first says
            while True:
                self._inbox.put(queue.get())
        self._inbox.put(queue)

    def close(self) -> None:
        """Stop what the workers do."""
        for step in (
            lambda: self._client.unsubscribe_topic(MEMORY_TOPIC),
            lambda: self._client.cancel([task.future for task in self._tasks.values()]),
            lambda: self._client.unregister_worker_plugin(self._name),
            self._queue.close,
        ):
            with suppress(Exception):  # the scheduler may be gone: each of its classes says so in its own way
                step()

    @property
    def free(self) -> int:
        """The number of workers without a task; the first task waits for a worker."""
        return max(0, self._workers - len(self._tasks))

    def submit(self, task: Any) -> int:
        """Give a task to the scheduler; return its number."""
        number, self._submitted = self._submitted, self._submitted + 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
            given = self._client.submit(answer, self._name, number, pickle.dumps(task), pure=False, retries=0)
        self._tasks[number] = _Task(given)
        return number

    def receive(self) -> Part | End:
        """Wait for the next part or end of a task.

        Raises:
            InputError: the scheduler is gone.
        """
        while not self._events:
            with suppress(Empty):
                message = self._inbox.get(timeout=PATIENCE)
                if message is self._queue:
                    self._recover()
                elif not isinstance(message, Queue):  # of a reader before this one
                    self._hear(*message)
            if now() - self._looked >= PATIENCE:
                self._look()
                self._looked = now()
        return self._events.popleft()

    def _hear(self, number: int, place: int, kind: int, value: bytes) -> None:
        task, content = self._tasks.get(number), pickle.loads(value)
        if task is None:
            return  # it was lost before
        if kind == RAISED:
            raise content
        missing, task.heard = task.heard != place, task.heard + 1
        if kind == AGAIN:
            self._lose(number)
        elif missing:
            self._end(End(number, "a part of its answer was lost", died=True))
        elif kind == READY:
            task.worker = content
        elif kind == PART:
            self._events.append(Part(number, content))
        else:
            self._end(End(number, content, memory=kind == FULL))

    def _look(self) -> None:
        """Find new workers, and tasks whose end nobody tells: their workers died, or the scheduler is another one."""
        states = {number: task.future.status for number, task in self._tasks.items()}
        if self._client.status != "running" or not {"cancelled", "lost"}.isdisjoint(states.values()):
            self._recover()
            return
        for number, state in states.items():
            task = self._tasks[number]
            task.silent = task.silent + 1 if state == "finished" and self._inbox.empty() else 0
            if task.silent == SILENT:
                self._end(End(number, "the end of its answer was lost", died=True))
            elif state == "error":
                self._fail(number, task.future.exception())
        free = self.free
        self._count()
        if self.free > free:
            self._events.append(Part(NOBODY, None))  # whoever waits has a look

    def _fail(self, number: int, error: BaseException | None) -> None:
        """End a task that failed: its workers died, it could not be told, or the job is not there."""
        if isinstance(error, KilledWorker):
            self._lose(number)
            return
        if isinstance(error, KeyError):  # another scheduler knows no plugin
            self._begin()
        why = one_line(error) if error is not None else "no reason"
        self._end(End(number, f"it failed at {self._tasks[number].worker or 'its worker'} ({why})", died=True))

    def _lose(self, number: int) -> None:
        worker = self._tasks[number].worker
        memory = worker in self._full
        said = "was ended, as Dask does when memory runs out" if memory else "ended"
        self._end(End(number, f"its worker {worker} {said}", memory=memory, died=True))

    def _end(self, end: End) -> None:
        del self._tasks[end.task]
        self._events.append(end)
        with suppress(OSError):
            Event(f"{self._name}-{end.task}", self._client).clear()  # nothing stays at the scheduler
        self._count()

    def _count(self) -> None:
        with suppress(OSError):
            self._workers = max(1, len(self._client.nthreads()))

    def _recover(self) -> None:
        """Wait until the scheduler is there again; its tasks are lost.

        Raises:
            InputError: it does not come back.
        """
        while self._client.status == "connecting":
            sleep(PATIENCE)
        if self._client.status != "running":
            raise InputError("the scheduler of the cluster is gone: what was answered is kept; run the command again")
        self._begin()
        for number in list(self._tasks):
            self._end(End(number, "the scheduler was lost", died=True))
