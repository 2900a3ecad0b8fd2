"""Progress of a certification: only warnings by default; the command line shows progress bars."""

import sys
import warnings

#: Beginnings of the names of this library's modules, and of what checks its types.
_INSIDE = ("verifiers.", "certkd.", "jaxtyping", "beartype")


class Reporter:
    """Hooks called by ``certify``; override the ones you need."""

    def clean(self, accuracy: float, samples: int) -> None:
        """Report the clean accuracy, before any method runs."""

    def inform(self, text: str) -> None:
        """Report one line about the method that is about to run."""

    def start(self, method: str, total: int, done: int) -> None:
        """Report that a method begins; an earlier run finished ``done`` of its ``total`` rows."""

    def within(self, settled: int, text: str) -> None:
        """Report where the current batch is, whose rows are not written yet: ``settled`` of them need no more work."""

    def advance(self, rows: int) -> None:
        """Report that rows of the current method were written."""

    def finish(self, method: str) -> None:
        """Report that the current method has an answer for every row."""

    def warn(self, text: str) -> None:
        """Report one line that the user should know."""


class Warner(Reporter):
    """Warns by Python's own warnings: for callers that give no reporter."""

    def warn(self, text: str) -> None:
        """Warn at the line that called the library."""
        frame, level = sys._getframe(1), 2
        while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).startswith(_INSIDE):
            frame, level = frame.f_back, level + 1
        warnings.warn(text, UserWarning, stacklevel=level)
