"""A pool without processes, and jobs for real ones."""

import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from verifiers.core.errors import out_of_memory
from verifiers.runtime.pool import End, Part, Send


class Inline:
    """Answers each task when it is given; all that is sent is pickled on the way.

    ``order`` says whose parts come first: of the ``first`` task that is open, of the ``last``, or of all in ``turns``.
    """

    block_seconds = 0.0

    def __init__(self, job: Any, workers: int, *, order: str = "first") -> None:
        self._answer = pickle.loads(pickle.dumps(job)).open()
        self._workers, self._given = workers, 0
        self._order = order
        self._open: list[deque[Part | End]] = []

    @property
    def free(self) -> int:
        return self._workers - len(self._open)

    def submit(self, task: Any) -> int:
        number, parts = self._given, deque[Part | End]()
        self._given += 1
        try:
            self._answer(
                pickle.loads(pickle.dumps(task)),
                lambda value: parts.append(Part(number, pickle.loads(pickle.dumps(value)))),
            )
            parts.append(End(number))
        except MemoryError as error:
            assert out_of_memory(error)
            parts.append(End(number, "no memory", memory=True))
        self._open.append(parts)
        return number

    def receive(self) -> Part | End:
        parts = self._open.pop(-1 if self._order == "last" else 0)
        event = parts.popleft()
        if parts:
            self._open.insert(0 if self._order == "first" else len(self._open), parts)
        return event


@dataclass(frozen=True)
class Squares:
    """The job of squaring a list of numbers, one part each; some numbers end the process or the memory."""

    killers: tuple[int, ...] = ()
    full: tuple[int, ...] = ()
    broken: tuple[int, ...] = ()
    once: str = ""  # a file without which a killer kills, and makes it

    def open(self) -> Callable[[list[int], Send], None]:
        return self.answer

    def answer(self, numbers: list[int], send: Send) -> None:
        for number in numbers:
            if number in self.killers and not os.path.exists(self.once):
                if self.once:
                    open(self.once, "w").close()
                time.sleep(0.05)
                os.kill(os.getpid(), signal.SIGKILL)
            if number in self.full:
                raise MemoryError
            if number in self.broken:
                raise ZeroDivisionError(f"{number} is broken")
            send((number, number**2))


class Lambdas:
    """A job that cannot be pickled."""

    def __init__(self) -> None:
        self.open = lambda: print


class Unopened:
    """A job that cannot be opened."""

    def open(self) -> Callable[[Any, Send], None]:
        raise LookupError("no such thing")
