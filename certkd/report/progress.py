"""The progress of certifications and trainings on stderr: a bar on a terminal, lines in a log."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from certkd.report.console import current, stderr
from certkd.reporter import TrainingReporter
from verifiers.core.errors import printable
from verifiers.core.reporter import Reporter
from verifiers.core.table import counted

if TYPE_CHECKING:
    from rich.progress import Progress

#: Seconds between two lines of a log.
BETWEEN = 10.0


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


def duration(seconds: float) -> str:
    """Write a time in whole units."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class _Pace:
    """Counts of a task and the time it takes: a line is due every ``BETWEEN`` seconds."""

    def __init__(self, clock: Callable[[], float], total: int, done: int) -> None:
        self._clock, self.total, self.done, self._before = clock, total, done, done
        self.started = self._last = clock()

    @property
    def seconds(self) -> float:
        """The time since the start."""
        return self._clock() - self.started

    def due(self) -> bool:
        """Tell whether it is time for a line."""
        now = self._clock()
        if now - self._last < BETWEEN:
            return False
        self._last = now
        return True

    def left(self, more: int = 0) -> str:
        """Say how long the rest takes at this pace, ``more`` being done as well; nothing if that is unknown."""
        done = self.done + more
        made = done - self._before
        return f", about {duration(self.seconds * (self.total - done) / made)} left" if made > 0 else ""


class _Shown:
    """Show a network's progress: its bar, its pace, and lines."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._console = stderr()
        self._quiet = current().quiet
        self._clock = clock
        self._bar: Progress | None = None
        self._task: Any = None
        self._pace = _Pace(clock, 0, 0)

    def warn(self, text: str) -> None:
        self._console.print(f"{self._name}: warning: {text}")

    def inform(self, text: str) -> None:
        if not self._quiet:
            self._console.print(f"{self._name}: {text}")


class CertifyProgress(_Shown, Reporter):
    """A bar per method on a terminal, lines with counts and the time that is left otherwise."""

    _method = ""

    def clean(self, accuracy: float, samples: int) -> None:
        self.inform(f"clean accuracy {accuracy:.1%} on {counted(samples, 'sample')}")

    def start(self, method: str, total: int, done: int) -> None:
        self._pace, self._method = _Pace(self._clock, total, done), method
        if done == total or self._quiet:
            return
        resumed = f" ({counted(done, 'row')} already done)" if done else ""
        if not self._console.is_terminal:
            self._console.print(f"{self._name}: {method}{resumed} ...")
            return
        self._bar = _progress(self._console)
        self._bar.start()
        self._task = self._bar.add_task(
            printable(f"{Path(self._name).name}: {method}"), total=total, completed=done, note=""
        )

    def within(self, settled: int, text: str) -> None:
        self._show(settled, text)

    def advance(self, rows: int) -> None:
        self._pace.done += rows
        self._show(0, "")

    def _show(self, more: int, text: str) -> None:
        pace = self._pace
        if self._bar is not None:
            self._bar.update(self._task, completed=pace.done + more, note=text)
        elif not self._quiet and pace.done < pace.total and pace.due():
            stage = f" ({text})" if text else ""
            count = f"{pace.done + more}/{pace.total}"
            self._console.print(f"{self._name}: {self._method} {count}{stage}{pace.left(more)}")

    def finish(self, method: str) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif not self._quiet and self._pace.seconds >= BETWEEN:
            total = self._pace.total
            self._console.print(f"{self._name}: {method} {total}/{total} in {duration(self._pace.seconds)}")


class TrainProgress(_Shown, TrainingReporter):
    """A bar with the last epoch's figures on a terminal; else a line every fifth of the epochs, or of a long one."""

    _epochs, _steps = 0, 1

    def start(self, epochs: int, done: int, steps: int) -> None:
        self._epochs, self._steps = epochs, steps
        self._pace = _Pace(self._clock, epochs * steps, done * steps)
        if self._console.is_terminal and done < epochs and not self._quiet:
            self._bar = _progress(self._console)
            self._bar.start()
            total, completed = epochs * steps, done * steps
            self._task = self._bar.add_task(
                printable(f"{self._name}: training"), total=total, completed=completed, note=""
            )

    def step(self) -> None:
        pace = self._pace
        pace.done += 1
        if self._bar is not None:
            self._bar.advance(self._task)
        elif not self._quiet and pace.done % self._steps and pace.due():
            epoch, step = divmod(pace.done, self._steps)
            self._console.print(
                f"{self._name}: epoch {epoch + 1}/{self._epochs} step {step}/{self._steps}{pace.left()}"
            )

    def epoch(self, record: dict[str, Any]) -> None:
        number, validation = record["epoch"] + 1, record["validation"]
        figures = f"epoch {number}/{self._epochs} loss {record['terms']['loss']:.3f} clean {validation['clean']:.3f}"
        figures += "".join(f" {name} {validation[name]:.3f}" for name in ("pgd", "noisy") if name in validation)
        if self._bar is not None:
            self._bar.update(self._task, note=figures)
            if number == self._epochs:
                self._bar.stop()
                self._bar = None
        elif not self._quiet and (number == self._epochs or number % max(1, self._epochs // 5) == 0):
            left = self._pace.left() if number < self._epochs else ""
            self._console.print(f"{self._name}: {figures}{left}")
