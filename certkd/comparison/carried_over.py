"""Find which of the teacher's certificates a student keeps, and what blocks the others."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from certkd.comparison import methods
from verifiers.core.status import Status
from verifiers.results.rows import Certificates
from verifiers.results.summaries.transfer import REASONS

#: The metrics that these counts add to a comparison.
CARRY_OVER_METRICS = ("kept", "kept_directly")
MISCLASSIFIED = "misclassified by the student"


@dataclass(frozen=True)
class CarriedOver:
    """Count the samples that the teacher has certified at eps, by what carries them over.

    Attributes:
        samples, norm, eps: as in the files.
        held: samples that the teacher has certified.
        direct: of them, those that the student's own certificates cover.
        through: those that only the teacher's certificate and the student's differences cover.
        at_least: those whose certified radius is at least the teacher's.
        blocked: the others, counted by the obstacle.
        to_first_order: those on which the published condition is proved: output deficit, gradient gap and the
            student's non-linearity are together no more than the teacher's own non-linearity.
        shortfall: median over them of the amount by which that condition fails, in logits.
    """

    samples: int
    norm: str
    eps: str
    held: int
    direct: int
    through: int
    at_least: int
    blocked: dict[str, int]
    to_first_order: int
    shortfall: float

    @property
    def kept(self) -> int:
        """Number of the teacher's samples that the student keeps."""
        return self.direct + self.through

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a requirement may name."""
        counts = (self.kept, self.direct)
        return {
            name: n / self.held if self.held else math.nan for name, n in zip(CARRY_OVER_METRICS, counts, strict=True)
        }

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {**vars(self), "kept": self.kept}


def carry_over(
    teacher: Certificates, student: Certificates, held: np.ndarray, direct: np.ndarray, at_least: np.ndarray
) -> CarriedOver | None:
    """Count what the student keeps; None where the student's file has no transfer rows about this teacher.

    Args:
        held: samples that the teacher has certified at eps.
        direct: samples that the student has.
        at_least: samples where the student's radius is at least the teacher's.
    """
    rows = methods.transfer(student) if methods.same_teacher(teacher, student) else None
    if rows is None or rows.count(Status.UNSUPPORTED):
        return None
    direct = held & direct
    through = held & ~direct & (rows["status"] == Status.CERTIFIED)
    lost = held & ~direct & ~through
    wrong = lost & (rows["status"] == Status.MISCLASSIFIED)
    blocked = {MISCLASSIFIED: int(wrong.sum())}
    for blocker, reason in REASONS.items():
        blocked[reason] = int((lost & ~wrong & (rows["blocker"] == blocker)).sum())
    blocked["without an answer"] = int(lost.sum()) - sum(blocked.values())
    shortfall = rows["shortfall"][held & np.isfinite(rows["shortfall"])]
    return CarriedOver(
        samples=len(rows),
        norm=student.norm,
        eps=student.eps_text,
        held=int(held.sum()),
        direct=int(direct.sum()),
        through=int(through.sum()),
        at_least=int((held & direct & at_least).sum()),
        blocked={reason: count for reason, count in blocked.items() if count},
        to_first_order=int((shortfall <= 0).sum()),
        shortfall=float(np.median(shortfall)) if len(shortfall) else math.nan,
    )
