"""Progress of a certification: silent by default; the command line shows progress bars."""


class Reporter:
    """Hooks called by ``certify``; override the ones you need."""

    def clean(self, accuracy: float, samples: int) -> None:
        """Clean accuracy, before any certificate is tried."""

    def inform(self, text: str) -> None:
        """Something about the method that is about to run; one line."""

    def start(self, method: str, total: int, done: int) -> None:
        """A method begins; ``done`` rows were finished by an earlier run."""

    def advance(self, rows: int) -> None:
        """Rows of the current method were written."""

    def finish(self, method: str) -> None:
        """The current method has an answer for every row."""

    def warn(self, text: str) -> None:
        """Something a person should know; one line."""
