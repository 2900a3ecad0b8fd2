"""How long the steps of a search take, and whether more of them would end in time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Pace:
    """The deadline of a search, and its pace so far.

    Attributes:
        deadline: on ``time.monotonic``.
        step: seconds of the last step of an ascent, per domain.
        proof: seconds of the last proof, per domain.
    """

    deadline: float
    step: float = 0.0
    proof: float = 0.0

    def late(self, steps: int = 0, proofs: int = 0) -> bool:
        """Return whether this many steps and proofs of a single domain would end after the deadline."""
        return time.monotonic() + steps * self.step + proofs * self.proof > self.deadline

    @contextmanager
    def of_step(self, domains: int) -> Iterator[None]:
        """Measure a step of domains."""
        started = time.monotonic()
        yield
        self.step = (time.monotonic() - started) / domains

    @contextmanager
    def of_proof(self, domains: int) -> Iterator[None]:
        """Measure a proof of domains."""
        started = time.monotonic()
        yield
        self.proof = (time.monotonic() - started) / domains
