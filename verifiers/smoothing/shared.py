"""What two networks' votes on the same noisy copies say that votes on copies of their own would not."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from verifiers.results.reader import read_images
from verifiers.results.rows import Certificates


@dataclass(frozen=True)
class SharedVotes:
    """Per sample, about the class that the student selected.

    Attributes:
        agreement: share of copies to which both networks gave the same class.
        lost: share of copies where only the teacher gave that class.
        gained: share where only the student did.
        variance: of the difference of their vote shares, counted on the same copies.
        unpaired_variance: what it would be with copies of their own.
    """

    agreement: Float[np.ndarray, " samples"]
    lost: Float[np.ndarray, " samples"]
    gained: Float[np.ndarray, " samples"]
    variance: Float[np.ndarray, " samples"]
    unpaired_variance: Float[np.ndarray, " samples"]


@dataclass(frozen=True)
class SameCopies:
    """The same over all samples: mean shares of copies, and the sums of the variances."""

    agreement: float
    lost: float
    gained: float
    variance: float
    unpaired_variance: float

    @classmethod
    def of(cls, shared: SharedVotes) -> "SameCopies":
        agreement, lost, gained = (float(shares.mean()) for shares in (shared.agreement, shared.lost, shared.gained))
        return cls(agreement, lost, gained, float(shared.variance.sum()), float(shared.unpaired_variance.sum()))


def shared_votes(student: Certificates) -> SharedVotes | None:
    """From the student's certificate file; None where no teacher saw its copies."""
    rows = student["smoothing"]
    answered = np.flatnonzero(rows["used"] > 0)
    names = ("votes", "teacher_votes", "same_votes")
    own, teacher, same = (read_images(student.path, "smoothing", name, answered).astype(np.int64) for name in names)
    if not teacher.any():
        return None
    return of_counts(own[:, -1], teacher, same, rows["selected"][answered], rows["used"][answered])


def of_counts(
    own: Int[np.ndarray, "samples classes"],
    teacher: Int[np.ndarray, "samples classes"],
    same: Int[np.ndarray, "samples classes"],
    selected: Int[np.ndarray, " samples"],
    copies: Int[np.ndarray, " samples"],
) -> SharedVotes:
    """With b lost and c gained, the difference c - b has variance (b + c - (b - c)^2) / n on the same copies."""
    s, t, both = (votes[np.arange(len(votes)), selected] / copies for votes in (own, teacher, same))
    lost, gained = t - both, s - both
    return SharedVotes(
        agreement=same.sum(1) / copies,
        lost=lost,
        gained=gained,
        variance=(lost + gained - (lost - gained) ** 2) / copies,
        unpaired_variance=(s * (1 - s) + t * (1 - t)) / copies,
    )
