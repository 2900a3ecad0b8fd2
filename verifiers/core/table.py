"""A table as data; the report draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the cells of each row as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Facts:
    """Facts and their names; one without a name belongs to the one before it."""

    rows: Sequence[tuple[str, str]]

    #: Characters of a name, unless it is longer.
    WIDTH: ClassVar[int] = 10

    def lines(self) -> list[str]:
        """Write each fact as a line, with the values below each other."""
        return [f"{name:<{self.WIDTH}} {value}" for name, value in self.rows]


#: One part of what a command prints: a table, facts or a sentence.
Part = Table | Facts | str


def counted(count: int, noun: str, several: str | None = None) -> str:
    """Write a number of things: "1 sample", "2 samples"; ``several`` is a plural that is not made by an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or f'{noun}s'}"


def percent(value: float) -> str:
    """Write a share with one decimal; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def figure(value: float) -> str:
    """Write a number with three digits; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.3g}"
