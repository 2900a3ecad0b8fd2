"""Summarise smoothing: the basis of its certificates, and two networks' votes on the same noisy copies."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifiers.core.table import Part
from verifiers.results.reader import read_images
from verifiers.results.rows import Certificates, MethodRows

#: The limits of a vote that ended early, by the question that it answered.
_EXTENT = {
    "eps": "; a vote ended once eps was decided, so radii, their means and clean are lower limits",
    "grid": "; a vote ended between two multiples of {step:g}, so radii are lower limits in between",
}


@dataclass(frozen=True)
class SharedVotes:
    """Votes per sample for the class that the student selected.

    Attributes:
        agreement: share of copies to which both networks gave the same class.
        lost: share of copies where only the teacher gave that class.
        gained: share where only the student did.
        variance: of the difference of their vote shares, counted on the same copies.
        unpaired_variance: the variance if each had voted on its own copies.
    """

    agreement: np.ndarray
    lost: np.ndarray
    gained: np.ndarray
    variance: np.ndarray
    unpaired_variance: np.ndarray


@dataclass(frozen=True)
class SameCopies:
    """``SharedVotes`` over all samples: mean shares of copies, and the sums of the variances."""

    agreement: float
    lost: float
    gained: float
    variance: float
    unpaired_variance: float

    @classmethod
    def of(cls, shared: SharedVotes) -> "SameCopies":
        """Summarise over the samples."""
        agreement, lost, gained = (float(shares.mean()) for shares in (shared.agreement, shared.lost, shared.gained))
        return cls(agreement, lost, gained, float(shared.variance.sum()), float(shared.unpaired_variance.sum()))


def shared_votes(rows: MethodRows, path: str) -> SharedVotes | None:
    """Count, from the student's certificate file, how two networks voted on the same copies.

    None if no teacher saw the student's copies.
    """
    answered = np.flatnonzero(rows["used"] > 0)
    names = ("votes", "teacher_votes", "same_votes")
    own, teacher, same = (read_images(path, rows.name, name, answered).astype(np.int64) for name in names)
    if not teacher.any():
        return None
    return of_counts(own[:, -1], teacher, same, rows["selected"][answered], rows["used"][answered])


def of_counts(
    own: np.ndarray,
    teacher: np.ndarray,
    same: np.ndarray,
    selected: np.ndarray,
    copies: np.ndarray,
) -> SharedVotes:
    """Count shares and variances per sample, from votes ``(samples, classes)`` and selected classes and copies.

    With b lost and c gained, the difference c - b has variance (b + c - (b - c)^2) / n on the same copies.
    """
    s, t, both = (votes[np.arange(len(votes)), selected] / copies for votes in (own, teacher, same))
    lost, gained = t - both, s - both
    return SharedVotes(
        agreement=same.sum(1) / copies,
        lost=lost,
        gained=gained,
        variance=(lost + gained - (lost - gained) ** 2) / copies,
        unpaired_variance=(s * (1 - s) + t * (1 - t)) / copies,
    )


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """State the basis of the certificates in one sentence."""
    return [basis(json.loads(str(certificates.attributes["settings"]))[rows.name])]


def basis(settings: Mapping[str, Any]) -> str:
    """State the basis of certificates with these settings in one sentence."""
    return (
        f"Smoothing: of the smoothed classifiers, {settings['noise']} noise of sigma {settings['sigma']:g}, at most "
        f"{settings['n']} copies after {settings['n0']}, each certificate wrong with probability {settings['alpha']:g}"
        f"{_EXTENT.get(settings['question'], '').format(**settings)}."
    )
