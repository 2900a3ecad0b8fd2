"""Answer blocks of rows in a pool of workers: on this machine, or on any other that can open a job.

A job is sent to every worker once and opened there; then each worker answers one block after another, and sends parts
of its answer as they are made. A worker that ends while it has a block loses nothing: the rows that it left are tried
again, then in halves, down to the row that is given up with its reason.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int

from verifiers.runtime.deadline import now

Rows = Int[np.ndarray, " rows"]
Left = Int[np.ndarray, " left"]
#: Sends one part of an answer.
Send = Callable[[Any], None]
#: Answers one task in a worker.
Answering = Callable[[Any, Send], None]


@runtime_checkable
class Job(Protocol):
    """What all workers do; it can be pickled."""

    def open(self) -> Answering:
        """Build in a worker what answers its tasks."""
        ...


@dataclass(frozen=True)
class Part:
    """A part of the answer to a task."""

    task: int
    value: Any


@dataclass(frozen=True)
class End:
    """The end of a task.

    Attributes:
        task: its number.
        lost: why it was not finished; empty if it was.
        memory: True if memory ran out.
        died: True if the worker ended with it; a task that only ran out of memory is not tried again as it is.
    """

    task: int
    lost: str = ""
    memory: bool = False
    died: bool = False


@runtime_checkable
class Pool(Protocol):
    """Workers that have opened a job.

    Attributes:
        block_seconds: how much work a block should have; 0 for one batch.
    """

    block_seconds: float

    @property
    def free(self) -> int:
        """The number of tasks that can begin now."""
        ...

    def submit(self, task: Any) -> int:
        """Give a task to a free worker; return its number."""
        ...

    def receive(self) -> Part | End:
        """Wait for the next part or end of a task.

        Raises:
            Exception: what the job raised.
        """
        ...


_Pool = TypeVar("_Pool", bound="Closing")


class Closing(ABC):
    """A pool that is used as a context manager."""

    def __enter__(self: _Pool) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End what the workers do."""


@runtime_checkable
class Work(Protocol):
    """Rows that a pool answers, as ``spread`` needs them."""

    def task(self, rows: Rows, size: int) -> Any:
        """Build the task of some rows, which are answered in batches of at most ``size``."""
        ...

    def take(self, rows: Rows, value: Any) -> bool:
        """Take a part of the answer to the task of these rows; return False to stop, and to drop all that is open."""
        ...

    def left(self, rows: Rows) -> Left:
        """Return those of some rows that have no answer yet."""
        ...

    def give_up(self, row: int, end: End) -> None:
        """Record a row that no worker can answer."""
        ...


@dataclass
class _Block:
    rows: Rows
    deaths: int = 0
    begun: float = 0.0


@dataclass
class _Queue:
    """Blocks that wait: those to be tried again, then the rest of the rows, cut when a worker is free.

    Attributes:
        rows: which no worker has had.
        size: of a batch.
        batches: in a block.
    """

    rows: Rows
    size: int
    batches: int = 1
    again: deque[_Block] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.again) or len(self.rows) > 0

    def next(self) -> _Block:
        """Take the next block."""
        if self.again:
            return self.again.popleft()
        cut = self.size * self.batches
        rows, self.rows = self.rows[:cut], self.rows[cut:]
        return _Block(rows)

    def measure(self, block: _Block, seconds: float, workers: int) -> None:
        """Let blocks have some seconds of work, by what a whole one took, while there are enough for all workers."""
        batches = math.ceil(len(block.rows) / self.size)
        wanted = seconds * batches / max(now() - block.begun, 1e-3)
        share = len(self.rows) / (2 * self.size * workers)
        self.batches = max(1, int(min(wanted, share)))

    def put_back(self, block: _Block, left: Left, end: End) -> int | None:
        """Queue the rows that a lost block left; return the row that must be given up.

        A block is tried again as it is after its worker died once, and a row that is left alone starts anew.
        """
        deaths = block.deaths + end.died
        if len(left) == 1 and len(block.rows) > 1:
            self.again.append(_Block(left))
        elif end.died and deaths == 1:
            self.again.append(_Block(left, deaths))
        elif len(left) == 1:
            return int(left[0])
        else:
            middle = len(left) // 2
            if not end.died:
                self.size = max(1, min(self.size, len(left)) // 2)
            parts = left[:middle], left[middle:]
            self.again.extend(_Block(part, deaths if len(part) > 1 else 0) for part in parts)
        return None


def spread(pool: Pool, work: Work, rows: Rows, size: int) -> None:
    """Answer rows in batches of ``size``, in the order in which workers are free.

    A block has one batch, or as many as take the ``block_seconds`` of the pool. Batches are the same, whatever the
    number of workers, unless a block is lost. It is tried again as it is after its worker died once; after that, or if
    it does not fit into memory, in halves.
    """
    queue, open_blocks = _Queue(rows, size), dict[int, _Block]()
    while queue or open_blocks:
        while queue and pool.free:
            block = queue.next()
            block.begun = now()
            open_blocks[pool.submit(work.task(block.rows, queue.size))] = block
        event = pool.receive()
        if event.task not in open_blocks:
            continue  # of work that was stopped
        if isinstance(event, Part):
            if not work.take(open_blocks[event.task].rows, event.value):
                return
            continue
        block = open_blocks.pop(event.task)
        left = work.left(block.rows)
        if not event.lost:
            if len(left):
                raise RuntimeError(f"a worker gave some of {len(block.rows)} rows no answer")
            if pool.block_seconds:
                queue.measure(block, pool.block_seconds, len(open_blocks) + pool.free)
        elif len(left) and (lost := queue.put_back(block, left, event)) is not None:
            work.give_up(lost, event)
