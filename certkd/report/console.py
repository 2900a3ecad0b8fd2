"""The console: results on stdout, progress and warnings on stderr; nothing is cut, nothing is read as markup."""

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich.table
from rich.console import Console
from rich.text import Text

from certkd.reporter import TrainingReporter
from verifiers.core.errors import printable
from verifiers.core.reporter import Reporter
from verifiers.core.table import Part, Table, counted

if TYPE_CHECKING:
    from rich.progress import Progress

#: Narrower terminals get lines of this width.
NARROWEST = 80
_NUMBER = re.compile(r"(([<>]= )?[-+]?[\d.,]+(e[-+]?\d+)?( ?%| GiB| s| min| h| days)?|[-+]?(nan|inf)|-|)")


class _Console(Console):
    """A console that shows control characters instead of obeying them: names and values can come from any file."""

    def render_str(self, text: str, **more: Any) -> Text:
        return super().render_str(lines(text), **more)


def lines(text: str) -> str:
    """Escape the control characters of a text, except the ends of its lines."""
    return "\n".join(printable(line) for line in text.split("\n"))


def stdout() -> Console:
    """Open the console for results. A pipe gets lines of any width; a terminal its own."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    return _Console(markup=False, emoji=False, highlight=False, width=max(width, NARROWEST))


def stderr() -> Console:
    """Open the console for progress and warnings."""
    return _Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def display(*parts: Part, console: Console | None = None) -> None:
    """Print tables and sentences as results; a sentence is one line, however long."""
    console = console or stdout()
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True)
        else:
            console.print(part.title, style="bold")
            console.print(drawn(part))


def drawn(table: Table) -> rich.table.Table:
    """Draw a table without its title. Columns of numbers are aligned at the right; no cell is shortened."""
    made = rich.table.Table(show_header=any(table.columns))
    for i, name in enumerate(table.columns):
        numbers = i > 0 and all(_NUMBER.fullmatch(row[i]) for row in table.rows)
        made.add_column(name, justify="right" if numbers else "left", overflow="fold")
    for row in table.rows:
        made.add_row(*row)
    return made


def _progress(console: Console) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        transient=True,
    )


class CertifyProgress(Reporter):
    """A bar per method on a terminal, one line per method otherwise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = stderr()
        self._bar: Progress | None = None
        self._task: Any = None

    def clean(self, accuracy: float, samples: int) -> None:
        self._console.print(f"{self._name}: clean accuracy {accuracy:.1%} on {counted(samples, 'sample')}")

    def start(self, method: str, total: int, done: int) -> None:
        if done == total:
            return
        resumed = f" ({done} rows already done)" if done else ""
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: {method}{resumed} ...")
            return
        self._bar = _progress(self._console)
        self._bar.start()
        self._task = self._bar.add_task(
            printable(f"{Path(self._name).name}: {method}"), total=total, completed=done, note=""
        )

    def advance(self, rows: int) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, rows)

    def finish(self, method: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def warn(self, text: str) -> None:
        self._console.print(f"{self._name}: warning: {text}")

    def inform(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}")


class TrainProgress(TrainingReporter):
    """A bar with the last epoch's figures on a terminal, a line every fifth of the epochs otherwise."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._console = stderr()
        self._bar: Progress | None = None
        self._task: Any = None
        self._epochs = 0

    def start(self, epochs: int, done: int, steps: int) -> None:
        self._epochs = epochs
        if self._console.is_terminal and done < epochs:
            self._bar = _progress(self._console)
            self._bar.start()
            total, completed = epochs * steps, done * steps
            self._task = self._bar.add_task(
                printable(f"{self._name}: training"), total=total, completed=completed, note=""
            )

    def step(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    def epoch(self, record: dict[str, Any]) -> None:
        number, validation = record["epoch"] + 1, record["validation"]
        figures = f"epoch {number}/{self._epochs} loss {record['terms']['loss']:.3f} clean {validation['clean']:.3f}"
        figures += "".join(f" {name} {validation[name]:.3f}" for name in ("pgd", "noisy") if name in validation)
        if self._bar is not None:
            self._bar.update(self._task, note=figures)
            if number == self._epochs:
                self._bar.stop()
                self._bar = None
        elif number == self._epochs or number % max(1, self._epochs // 5) == 0:
            self._console.print(f"{self._name}: {figures}")

    def warn(self, text: str) -> None:
        self._console.print(f"{self._name}: warning: {text}")

    def inform(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}")
