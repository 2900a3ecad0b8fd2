"""Progress of a training: silent by default; the command line shows progress bars."""

from typing import Any


class TrainingReporter:
    """Hooks called while training; override the ones you need."""

    def start(self, epochs: int, done: int, steps: int) -> None:
        """Training begins: ``done`` of ``epochs`` were finished by an earlier run, each has ``steps`` steps."""

    def step(self) -> None:
        """One optimiser step was made."""

    def epoch(self, record: dict[str, Any]) -> None:
        """One epoch ended; the record that is logged."""

    def warn(self, text: str) -> None:
        """Something a person should know; one line."""
