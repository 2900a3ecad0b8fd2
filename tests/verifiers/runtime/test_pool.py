"""Blocks of rows reach workers and come back, whatever happens to the workers."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli import process
from tests.pools import Inline, Lambdas, Squares, Unopened
from verifiers.core.errors import InputError
from verifiers.runtime.pool import End, Part, Pool, Rows, spread
from verifiers.runtime.processes import Processes


@dataclass
class Sums:
    """Work that records what it gives and gets."""

    stop_at: int = -1
    found: dict[int, int] = field(default_factory=dict)
    tasks: list[list[int]] = field(default_factory=list)
    lost: dict[int, End] = field(default_factory=dict)

    def task(self, rows: Rows, size: int) -> list[int]:
        self.tasks.append(rows.tolist())
        return self.tasks[-1]

    def take(self, rows: Rows, value: Any) -> bool:
        number, square = value
        assert number in rows and number not in self.found, f"{number} is answered twice, or to others: {rows}"
        self.found[number] = square
        return number != self.stop_at

    def left(self, rows: Rows) -> Rows:
        return np.array([row for row in rows if row not in self.found and row not in self.lost], int)

    def give_up(self, row: int, end: End) -> None:
        self.lost[row] = end


def assert_squares(work: Sums, numbers: range, but: set[int] = set()) -> None:  # noqa: B006 - not changed
    assert work.found == {number: number**2 for number in numbers if number not in but}
    assert set(work.lost) == but


@pytest.mark.parametrize("order", ["first", "last", "turns"])
@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_are_those_of_one_process(workers: int, order: str) -> None:
    work = Sums()
    spread(Inline(Squares(), workers, order=order), work, np.arange(10), 4)
    assert work.tasks == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert_squares(work, range(10))


def test_a_block_that_does_not_fit_is_halved_down_to_the_row() -> None:
    work = Sums()
    spread(Inline(Squares(full=(5,)), 2), work, np.arange(8), 8)
    assert_squares(work, range(8), but={5})
    assert work.lost[5].memory and not work.lost[5].died
    assert work.tasks == [[*range(8)], [5], [6, 7]], "a row with an answer is asked again, or a lost one is tried twice"


@dataclass
class Dying:
    """A pool whose workers die at some numbers, with the part of the answer that came first."""

    killers: set[int]
    events: list[Part | End] = field(default_factory=list)
    given: int = 0
    block_seconds: float = 0.0

    @property
    def free(self) -> int:
        return 0 if self.events else 1

    def submit(self, task: list[int]) -> int:
        alive = True
        for number in task:
            if alive := number not in self.killers:
                self.events.append(Part(self.given, (number, number**2)))
            else:
                break
        self.events.append(End(self.given) if alive else End(self.given, "killed", memory=True, died=True))
        self.given += 1
        return self.given - 1

    def receive(self) -> Part | End:
        return self.events.pop(0)


def test_a_block_that_kills_is_tried_again_and_then_halved() -> None:
    """Seven rows are left after row 0; the block dies again, and only then its rows are parted."""
    work = Sums()
    spread(Dying({1}), work, np.arange(8), 8)
    assert_squares(work, range(8), but={1})
    assert work.tasks == [[*range(8)], [*range(1, 8)], [1, 2, 3], [4, 5, 6, 7], [1], [2, 3], [1]]
    assert work.lost[1] == End(6, "killed", memory=True, died=True)


def test_every_row_may_kill() -> None:
    work = Sums()
    spread(Dying(set(range(6))), work, np.arange(6), 3)
    assert_squares(work, range(6), but=set(range(6)))


def test_a_stop_drops_what_is_open() -> None:
    """Parts of tasks that were open come in the next work, and are not its own."""
    pool, first, second = Inline(Squares(), 3), Sums(stop_at=0), Sums()
    spread(pool, first, np.arange(9), 3)
    assert first.found == {0: 0}
    spread(pool, second, np.arange(20, 29), 3)
    assert_squares(second, range(20, 29))


def test_an_unanswered_row_is_a_bug() -> None:
    class Silent(Squares):
        def answer(self, numbers: list[int], send: Any) -> None:
            send((numbers[0], 0))

    pool = Inline(Squares(), 1)
    pool._answer = Silent().answer
    with pytest.raises(RuntimeError, match="some of 2 rows no answer"):
        spread(pool, Sums(), np.arange(2), 2)


# Real processes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Processes, Path]]:
    """Two processes, of which one is killed by number 11 once, and each by number 13."""
    once = tmp_path_factory.mktemp("pool") / "killed"
    with Processes(Squares(killers=(11,), full=(17,), broken=(19,), once=str(once)), 2) as pool:
        assert isinstance(pool, Pool)
        yield pool, once


def test_a_killed_process_loses_nothing(two: tuple[Processes, Path]) -> None:
    pool, once = two
    work, before = Sums(), set(pool.pids)
    spread(pool, work, np.arange(18), 6)
    assert_squares(work, range(18), but={17})
    assert once.exists() and [*range(6, 12)] in work.tasks and [11] in work.tasks
    assert len(pool.pids) == 2 and len(before - set(pool.pids)) == 1, "another process takes the place"


def test_an_error_is_raised_with_the_lines_of_the_worker(two: tuple[Processes, Path]) -> None:
    with pytest.raises(ZeroDivisionError, match="19 is broken") as caught:
        spread(two[0], Sums(), np.arange(19, 20), 1)
    assert any("in answer" in note for note in caught.value.__notes__), caught.value.__notes__


def test_a_job_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(InputError, match=r"cannot be sent to other processes \(.*\): use one"):
        Processes(Lambdas(), 2)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_job_that_cannot_be_opened_raises_its_error() -> None:
    with Processes(Unopened(), 1) as pool, pytest.raises(LookupError, match="no such thing"):
        spread(pool, Sums(), np.arange(2), 1)


@pytest.mark.slow
def test_processes_that_never_start_are_said() -> None:
    with Processes(Squares(), 2) as pool:
        for pid in pool.pids:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(InputError, match=r"no worker process starts: .*SIGKILL"):
            spread(pool, Sums(), np.arange(2), 1)


CODE = """
import sys, time
import numpy as np
from tests.pools import Squares
from tests.verifiers.runtime.test_pool import Slow, Sums
from verifiers.runtime.pool import spread
from verifiers.runtime.processes import Processes
with Processes(Slow(), 2) as pool:
    print(*pool.pids, flush=True)
    spread(pool, Sums(), np.arange(1000), 5)
"""


class Slow(Squares):
    """Squares that take an hour."""

    def answer(self, numbers: list[int], send: Any) -> None:
        time.sleep(3600)


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_workers_end_with_the_process_that_began_them(number: signal.Signals) -> None:
    """Ctrl-C goes to the whole group; a kill to the one process alone. No worker shows a traceback of its own."""
    started = process(CODE)
    assert started.stdout is not None and started.stderr is not None
    pids = [int(pid) for pid in started.stdout.readline().split()]
    for pid in (started.pid, *(pids if number == signal.SIGINT else [])):
        os.kill(pid, number)
    started.wait(timeout=60)
    errors = started.stderr.read()
    assert errors.count("Traceback") == (number == signal.SIGINT), errors
    for _ in range(600):
        if all(_gone(pid) for pid in pids):
            break
        time.sleep(0.05)
    assert len(pids) == 2 and all(_gone(pid) for pid in pids)
