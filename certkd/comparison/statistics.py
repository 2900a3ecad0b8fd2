"""The figures of one network and the paired statistics of two, from their radii."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifiers.core.statistics import mcnemar

#: Quantiles of the radius distribution that tables show.
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: Approximate number of rows in the table of radii.
ROWS = 8


@dataclass(frozen=True)
class Side:
    """One network's figures over all samples; misclassified and abstained ones count with radius 0.

    Attributes:
        clean: share classified correctly; of smoothing, by the smoothed classifier, and abstaining is wrong.
        pgd: share correct and not falsified by any attack at eps; nan when none was run, and for smoothing, whose
            classifier it did not attack.
        certified: share correct and certified at eps.
        mean_radius: mean certified radius, pixel units.
        quantiles: of the certified radius, at ``QUANTILES``.
    """

    clean: float
    pgd: float
    certified: float
    mean_radius: float
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Difference:
    """Paired mean of student minus teacher, with its standard error and that of unpaired samples."""

    mean: float
    standard_error: float
    unpaired_error: float


@dataclass(frozen=True)
class AtRadius:
    """Both networks at one radius.

    Attributes:
        radius: pixel units; at 0, any certificate counts.
        teacher, student: shares correct and certified at it.
        retention: of the samples that the teacher has certified, the share that the student has too; nan for none.
        gains, losses: samples certified by the student only, by the teacher only.
        mcnemar: two-sided p-value of McNemar's exact test on gains and losses.
    """

    radius: float
    teacher: float
    student: float
    retention: float
    gains: int
    losses: int
    mcnemar: float


@dataclass(frozen=True)
class Outcomes:
    """One network's answer per sample.

    Attributes:
        clean: classified correctly.
        pgd: correct and not falsified; nan without an attack.
        certified: correct and certified at eps.
        radius: certified radius, 0 where misclassified or abstained.
    """

    clean: np.ndarray
    pgd: np.ndarray
    certified: np.ndarray
    radius: np.ndarray

    def side(self) -> Side:
        """Average over the samples."""
        return Side(
            clean=float(self.clean.mean()),
            pgd=float(self.pgd.mean()),
            certified=float(self.certified.mean()),
            mean_radius=float(self.radius.mean()),
            quantiles=tuple(float(q) for q in np.quantile(self.radius, QUANTILES)),
        )


def differences(ours: Outcomes, theirs: Outcomes) -> dict[str, Difference]:
    """Compare the four figures sample by sample."""
    return {name: paired(values, vars(theirs)[name]) for name, values in vars(ours).items()}


def paired(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Compute the mean of ours - theirs and its standard errors (sample standard deviation over root n)."""
    ours, theirs = ours.astype(float), theirs.astype(float)
    errors = [_standard_error(values) for values in (ours - theirs, ours, theirs)]
    return Difference(float((ours - theirs).mean()), errors[0], math.hypot(*errors[1:]))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def at_radius(radius: float, ours: np.ndarray, theirs: np.ndarray) -> AtRadius:
    """Compare student (ours) and teacher (theirs) at one radius, from their certified radii."""
    kept, had = ((radii >= radius) & (radii > 0) for radii in (ours, theirs))
    both, gains, losses = int((kept & had).sum()), int((kept & ~had).sum()), int((had & ~kept).sum())
    retention = both / (both + losses) if both + losses else math.nan
    return AtRadius(radius, float(had.mean()), float(kept.mean()), retention, gains, losses, mcnemar(gains, losses))


def radii_shown(top: float, eps: float, settings: Mapping[str, Mapping[str, Any]]) -> list[float]:
    """Choose the radii of a table: round ones up to the largest, and eps.

    If votes stopped early, only the radii that they decided are shown: eps, or steps of the grid.

    Args:
        top: the largest certified radius.
        eps: of both files.
        settings: of the methods compared, by name.
    """
    vote = next((one for one in settings.values() if "question" in one), {})
    if vote.get("question") == "eps":
        return [eps]
    grid = vote.get("question") == "grid"
    steps = (vote["step"] * 2.0**power for power in itertools.count()) if grid else _round_numbers()
    step = next(step for step in steps if step * ROWS >= top)
    return sorted({round(step * i, 12) for i in range(int(top / step) + 1)} | {eps})


def _round_numbers() -> Iterator[float]:
    return (digits * 10.0**power for power in itertools.count(-4) for digits in (1.0, 2.5, 5.0))
