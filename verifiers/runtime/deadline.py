"""Deadlines: the one clock of time limits, and the places where long computations look at it.

Whoever starts work opens ``within``; loops inside call ``check``, which raises ``TimeUp`` once the earliest deadline
around them has passed. Nothing hands deadlines on.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class TimeUp(Exception):
    """A time limit has passed; what was proved before it holds."""


def now() -> float:
    """Read the clock of all deadlines, in seconds."""
    return time.monotonic()


_deadline: ContextVar[float] = ContextVar("deadline", default=math.inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let ``check`` raise inside after a time, or earlier where a deadline around is earlier."""
    token = _deadline.set(min(_deadline.get(), now() + seconds))
    try:
        yield
    finally:
        _deadline.reset(token)


def left() -> float:
    """Return the seconds until the earliest deadline; inf without one."""
    return _deadline.get() - now()


def check() -> None:
    """Raise ``TimeUp`` if a deadline has passed."""
    if _deadline.get() < math.inf and left() < 0:
        raise TimeUp
