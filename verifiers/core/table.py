"""A table as data; the report draws it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A title, the names of the columns, and the cells of each row as text."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


#: One part of what a command prints: a table or a sentence.
Part = Table | str


def counted(count: int, noun: str, several: str | None = None) -> str:
    """Write a number of things: "1 sample", "2 samples"; ``several`` is a plural that is not made by an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or f'{noun}s'}"


def percent(value: float) -> str:
    """Write a share with one decimal; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def figure(value: float) -> str:
    """Write a number with three digits; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.3g}"
