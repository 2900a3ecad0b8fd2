"""Progress of a certification: silent by default; the command line shows progress bars."""


class Reporter:
    """Hooks called by ``certify``; override the ones you need."""

    def clean(self, accuracy: float, samples: int) -> None:
        """Report the clean accuracy, before any method runs."""

    def inform(self, text: str) -> None:
        """Report one line about the method that is about to run."""

    def start(self, method: str, total: int, done: int) -> None:
        """Report that a method begins; an earlier run finished ``done`` of its ``total`` rows."""

    def advance(self, rows: int) -> None:
        """Report that rows of the current method were written."""

    def finish(self, method: str) -> None:
        """Report that the current method has an answer for every row."""

    def warn(self, text: str) -> None:
        """Report one line that the user should know."""
