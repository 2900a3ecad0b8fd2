"""``spread`` against a model: whatever dies, fills the memory or comes late, every row has one end."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.runtime.pool import End, Left, Part, Pool, Rows, Work, spread

SIZE = 12


@dataclass
class Chaos:
    """Workers that die at some rows, always or once, and run out of memory with some others."""

    workers: int
    always: frozenset[int]
    once: set[int]
    full: frozenset[int]
    turns: list[int]
    running: list[deque[Part | End]] = field(default_factory=list)
    tasks: list[list[int]] = field(default_factory=list)
    deaths: int = 0
    block_seconds: float = 0.0

    @property
    def free(self) -> int:
        return self.workers - len(self.running)

    def submit(self, task: list[int]) -> int:
        assert self.free > 0, "a task was given to a pool without a free worker"
        number, parts = len(self.tasks), deque[Part | End]()
        self.tasks.append(task)
        end = End(number)
        for row in task:
            if row in self.always or row in self.once:
                self.once.discard(row)
                self.deaths += 1
                end = End(number, "killed", memory=True, died=True)
                break
            if row in self.full:
                end = End(number, "no memory", memory=True)
                break
            parts.append(Part(number, row))
        parts.append(end)
        self.running.append(parts)
        return number

    def receive(self) -> Part | End:
        assert self.running, "a pool without tasks was asked for events"
        turn = self.turns.pop() if self.turns else 0
        parts = self.running[turn % len(self.running)]
        event = parts.popleft()
        if not parts:
            self.running.remove(parts)
        return event


@dataclass
class Ledger:
    """Counts the ends of every row."""

    answered: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    reasons: dict[int, End] = field(default_factory=dict)

    def task(self, rows: Rows, size: int) -> list[int]:
        assert len(rows), "an empty task"
        return rows.tolist()

    def take(self, rows: Rows, value: Any) -> bool:
        assert value in rows
        self.answered.append(value)
        return True

    def left(self, rows: Rows) -> Left:
        return np.array([row for row in rows if row not in {*self.answered, *self.lost}], int)

    def give_up(self, row: int, end: End) -> None:
        self.lost.append(row)
        self.reasons[row] = end


ROWS = st.frozensets(st.integers(0, SIZE - 1), max_size=4)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), ROWS, ROWS, ROWS, st.integers(1, SIZE), st.lists(st.integers(0, 7), max_size=40))
def test_every_row_has_one_end(
    workers: int,
    always: frozenset[int],
    once: frozenset[int],
    full: frozenset[int],
    size: int,
    turns: list[int],
) -> None:
    """Exactly the rows that kill or fill by themselves are given up; those that died with others are answered."""
    pool, ledger = Chaos(workers, always, {*once} - always - full, full - always, turns), Ledger()
    assert isinstance(pool, Pool) and isinstance(ledger, Work)
    spread(pool, ledger, np.arange(SIZE), size)
    assert sorted(ledger.answered) == sorted({*range(SIZE)} - always - full), "a row was answered twice or never"
    assert sorted(ledger.lost) == sorted(always | full)
    assert not pool.running, "a task was left behind"
    for row, end in ledger.reasons.items():
        assert end.died == (row in always) and end.memory


@pytest.mark.parametrize("size", [1, 3, SIZE])
def test_a_run_without_losses_cuts_rows_in_order(size: int) -> None:
    pool = Chaos(3, frozenset(), set(), frozenset(), [2, 1, 0] * 9)
    spread(pool, Ledger(), np.arange(SIZE), size)
    assert pool.tasks == [[*range(start, min(SIZE, start + size))] for start in range(0, SIZE, size)]


@pytest.mark.parametrize("rows", [2, 4, 8])
def test_the_cost_of_a_row_that_kills_is_logarithmic(rows: int) -> None:
    """Two deaths of the block, one for each halving, and one more of the row alone."""
    pool = Chaos(2, frozenset({rows - 1}), set(), frozenset(), [])
    ledger = Ledger()
    spread(pool, ledger, np.arange(rows), rows)
    assert ledger.lost == [rows - 1] and pool.deaths == 3, "rows before it are answered, so it is soon alone"
    pool, ledger = Chaos(2, frozenset({0}), set(), frozenset(), []), Ledger()
    spread(pool, ledger, np.arange(rows), rows)
    assert ledger.lost == [0] and pool.deaths == 3 + int(np.log2(rows))


def test_after_a_batch_that_did_not_fit_batches_are_smaller() -> None:
    pool, ledger = Chaos(1, frozenset(), set(), frozenset({0}), []), Ledger()
    spread(pool, ledger, np.arange(SIZE), 4)
    assert max(len(task) for task in pool.tasks[1:]) <= 2 and ledger.lost == [0]


def test_no_rows_need_no_worker() -> None:
    pool = Chaos(1, frozenset(), set(), frozenset(), [])
    spread(pool, Ledger(), np.arange(0), 4)
    assert pool.tasks == []
