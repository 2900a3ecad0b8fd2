"""Progress of a training: silent by default; the command line shows progress bars."""

from typing import Any


class TrainingReporter:
    """Hooks called while training; override the ones you need."""

    def start(self, epochs: int, done: int, steps: int) -> None:
        """Report that training begins; an earlier run finished ``done`` of ``epochs``, each of ``steps`` steps."""

    def step(self) -> None:
        """Report that one optimiser step was made."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Report that an epoch ended, with the record that is logged."""

    def inform(self, text: str) -> None:
        """Something about the data; one line."""

    def warn(self, text: str) -> None:
        """Report one line that the user should know."""
