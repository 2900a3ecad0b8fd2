"""A table as data; the report draws it."""

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
