"""The console: results on stdout, progress and warnings on stderr; nothing is cut, nothing is read as markup."""

import re
import shutil
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import rich.table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from verifiers.core.errors import printable
from verifiers.core.table import Facts, Part, Table

#: Narrower terminals get lines of this width.
NARROWEST = 80
#: Longer words, like paths, may be cut.
LONGEST_WORD = 40
_NUMBER = re.compile(r"(([<>]=? ?)?[-+]?[\d.,]+(e[-+]?\d+)?( ?%| GiB| s| min| h| days)?|[-+]?(nan|inf)|-|)")
#: A number with its deviation, and an interval, which may be wrapped.
_SPREAD = re.compile(r"[-+\d.]+ ± [\d.]+|\[[-+\d.]+, [-+\d.]+\]")


@dataclass
class Mode:
    """Hold the way in which a command prints.

    Attributes:
        quiet: without progress; results and warnings are left.
        plain: results are kept, and printed at the end as one JSON document.
        parts: the results that are kept.
        values: what the command records by name, for the document alone.
    """

    quiet: bool = False
    plain: bool = False
    parts: list[Part] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the results as plain values: what was recorded, then tables and sentences as they are printed."""
        tables = [
            {"title": part.title, "columns": list(part.columns), "rows": [list(row) for row in part.rows]}
            for part in self.parts
            if isinstance(part, Table)
        ]
        lines = [
            [part] if isinstance(part, str) else part.lines() for part in self.parts if not isinstance(part, Table)
        ]
        return {**self.values, "tables": tables, "lines": [line for each in lines for line in each]}


_mode: ContextVar[Mode] = ContextVar("mode")


def begin(mode: Mode) -> None:
    """Print in this way from now on."""
    _mode.set(mode)


def current() -> Mode:
    """Return how the running command prints."""
    return _mode.get(_AS_TEXT)


def record(**values: Any) -> None:
    """Keep plain values for the JSON document, if one is wanted; a list is added to the one of the same name."""
    if current().plain:
        kept = current().values
        for name, value in values.items():
            kept[name] = [*kept.get(name, []), *value] if isinstance(value, list) else value


_AS_TEXT = Mode()


class _Console(Console):
    """A console that shows control characters instead of obeying them: names and values can come from any file."""

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(lines(text), **more)


def lines(text: str) -> str:
    """Escape the control characters of a text, except the ends of its lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def stdout() -> Console:
    """Open the console for results. A pipe gets lines of any width; a terminal its own."""
    terminal = sys.stdout.isatty()
    width = max(shutil.get_terminal_size().columns, NARROWEST) if terminal else 10_000
    return _Console(markup=False, emoji=False, highlight=False, width=width, soft_wrap=not terminal)


def stderr() -> Console:
    """Open the console for progress and warnings."""
    return _Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def display(*parts: Part, console: Console | None = None) -> None:
    """Print tables, facts and sentences as results.

    A terminal gets sentences that are wrapped between words, a pipe each as one line. What has several lines already,
    like a file for a paper, is printed as it is.
    """
    if console is None and current().plain:
        current().parts.extend(parts)
        return
    console = console or stdout()
    for part in parts:
        if isinstance(part, str):
            _print(console, part, whole="\n" in part)
        elif isinstance(part, Facts):
            for name, value in part.rows:
                _print(console, value, f"{name:<{part.WIDTH}} ")
        else:
            _print(console, part.title, style="bold")
            for piece in fitted(part, console.width):
                console.print(drawn(piece), soft_wrap=False)


def _print(console: Console, text: str, start: str = "", *, style: str = "", whole: bool = False) -> None:
    """Print a text after a start; on a terminal between words, below each other. A word is never cut."""
    shown = lines(text)
    rows = [shown] if console.soft_wrap or whole else _wrapped(shown, console.width - cell_len(start))
    for number, row in enumerate(rows):
        before = lines(start) if number == 0 else " " * cell_len(start)
        console.print(Text(f"{before}{row}", style=style), soft_wrap=True)


def _wrapped(text: str, width: int) -> list[str]:
    """Split a text between words into lines that fit a width; a longer word has a line of its own."""
    rows, used = [""], 0
    for piece in re.findall(r"\s*\S+", text):
        size = cell_len(piece)
        if rows[-1] and used + size > width:
            rows.append("")
            piece, used = piece.lstrip(), 0
        rows[-1] += piece
        used += cell_len(piece)
    return rows


def fitted(table: Table, width: int) -> list[Table]:
    """Split a table that is too wide into several of the same rows and first column, so that no word is cut."""
    least = [_longest_word(table, column) for column in range(len(table.columns))]
    groups: list[list[int]] = [[]]
    for column in range(1, len(least)):
        if groups[-1] and _width([least[i] for i in (0, *groups[-1], column)]) > width:
            groups.append([])
        groups[-1].append(column)
    return [
        Table(
            table.title, [table.columns[i] for i in (0, *group)], [[row[i] for i in (0, *group)] for row in table.rows]
        )
        for group in groups
    ]


def _longest_word(table: Table, column: int) -> int:
    """Return the width below which a column would cut a word; numbers and their units are one word."""
    cells = [table.columns[column], *(row[column] for row in table.rows)]
    parts = [[cell] if _NUMBER.fullmatch(cell) else cell.split() for cell in cells]
    return max((len(part) for words in parts for part in words), default=0)


def _width(columns: Sequence[int]) -> int:
    """Return the width of a table with its lines and margins."""
    return sum(columns) + 3 * len(columns) + 1


def drawn(table: Table) -> rich.table.Table:
    """Draw a table without its title. Columns of numbers are aligned at the right; no cell is shortened."""
    made = rich.table.Table(show_header=any(table.columns))
    for i, name in enumerate(table.columns):
        numbers = i > 0 and all(_NUMBER.fullmatch(row[i]) or _SPREAD.fullmatch(row[i]) for row in table.rows)
        least = min(_longest_word(table, i), LONGEST_WORD)
        made.add_column(name, justify="right" if numbers else "left", overflow="fold", min_width=least)
    for row in table.rows:
        made.add_row(*row)
    return made
