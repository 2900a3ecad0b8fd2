"""Compare two certificate files: how much of the teacher's robustness the student kept.

Both files must have the same samples, norm, eps and method settings. Then every difference is one of the networks, and
statistics are paired, sample by sample.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from certkd.comparison import methods
from certkd.comparison.carried_over import CARRY_OVER_METRICS, CarriedOver, carry_over
from certkd.comparison.methods import check_known, check_same, check_types, common_methods, same_teacher, settings_of
from certkd.comparison.statistics import AtRadius, Difference, Outcomes, Side, at_radius, differences, radii_shown
from verifiers.core.quantities import Epsilon
from verifiers.core.statistics import Proportion, mcnemar, wilson
from verifiers.core.status import FAILURES, About, Status
from verifiers.methods.registry import find, proves
from verifiers.results.rows import Certificates
from verifiers.results.summaries.diagnostics import Diagnosis, diagnose
from verifiers.results.summaries.match import Matched
from verifiers.results.summaries.smoothing import SameCopies, shared_votes

#: Figures of each network that a requirement may name, the teacher's with the prefix ``teacher_``.
FIGURES = ("clean", "pgd", "certified", "mean_radius")
#: Every metric that a requirement may name.
METRICS = (
    *("retention", "radius_retention", *FIGURES, *(f"teacher_{name}" for name in FIGURES)),
    *("gains", "losses", "mcnemar", *CARRY_OVER_METRICS),
)


@dataclass(frozen=True)
class Comparison:
    """Hold the figures of a student and its teacher: what the student kept.

    Attributes:
        method: whose radii are compared; "best" is the larger of all deterministic methods, sample by sample.
        methods: the methods whose radii are compared.
        settings: of those methods, by name; the same in both files.
        norm, eps, samples: as in both files.
        teacher, student: the figures of each.
        differences: paired differences of clean, pgd, certified and radius.
        retention: of the samples that the teacher has certified at eps, the share that the student has too.
        radius_retention: of the same samples, the share where the student's radius is also at least the teacher's.
        gains, losses: sample indices certified at eps by the student only, by the teacher only.
        mcnemar: two-sided p-value of McNemar's exact test on gains and losses.
        curve: both networks at several radii, eps among them; at eps alone if votes stopped once eps was decided.
        carried_over: the teacher's certificates by what carries them over; None without transfer rows.
        same_copies: the votes of both networks on the same noisy copies of smoothing; None unless the student's run
            showed its copies to this teacher.
        diagnosis: input gradients and attacks of both networks; None without diagnostics.
        match: on how many balls the student matches this teacher; None without such rows.
    """

    method: str
    methods: tuple[str, ...]
    settings: dict[str, dict[str, Any]]
    norm: str
    eps: str
    samples: int
    teacher: Side
    student: Side
    differences: dict[str, Difference]
    retention: Proportion
    radius_retention: Proportion
    gains: tuple[int, ...]
    losses: tuple[int, ...]
    mcnemar: float
    curve: tuple[AtRadius, ...]
    carried_over: CarriedOver | None
    same_copies: SameCopies | None
    diagnosis: Diagnosis | None
    match: Matched | None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values, ready for JSON; nan becomes None."""
        match = None if self.match is None else self.match.to_dict()
        return dict(plain({**asdict(self), "metrics": self.metrics(), "match": match}))

    def metrics(self) -> dict[str, float]:
        """Return the numbers that a requirement may name."""
        values = {"retention": self.retention.value, "radius_retention": self.radius_retention.value}
        for name in FIGURES:
            values[name] = getattr(self.student, name)
            values[f"teacher_{name}"] = getattr(self.teacher, name)
        values["gains"], values["losses"] = float(len(self.gains)), float(len(self.losses))
        values["mcnemar"] = self.mcnemar
        return values if self.carried_over is None else {**values, **self.carried_over.metrics()}


def compare(
    teacher: Certificates,
    student: Certificates,
    *,
    method: str | Sequence[str] = "best",
    eps: str | float | Epsilon | None = None,
) -> Comparison:
    """Compare two finished certificate files sample by sample.

    Example:
        >>> files = [certkd.read_certificates(name) for name in ("teacher.h5", "student.h5")]
        >>> certkd.compare(*files).retention

    Args:
        teacher: the reference.
        student: the network to judge.
        method: a certificate method in both files, or "best": each sample's larger radius over all deterministic
            ones, or smoothing's where they have none of those in common; or the names of several proofs.
        eps: another radius than the files', where radii allow it; attacks and pairs are then left out.

    Raises:
        InputError: unfinished or failed rows; other data, norm, eps or settings; no such method in both.
    """
    check_types(teacher, student)
    check_same(teacher, student)
    if eps is not None:
        teacher, student = (methods.restated(each, Epsilon.parse(eps)) for each in (teacher, student))
    names = common_methods((teacher, student), method)
    ours, theirs = outcomes_of(student, names), outcomes_of(teacher, names)
    kept, had, at_least = ours.certified, theirs.certified, ours.radius >= theirs.radius
    index = teacher[names[0]]["index"]
    gains, losses = (tuple(int(i) for i in index[chosen]) for chosen in (kept & ~had, had & ~kept))
    settings = settings_of(teacher)
    used = {name: settings[name] for name in names}
    shown = radii_shown(float(max(ours.radius.max(), theirs.radius.max())), teacher.eps, used)
    return Comparison(
        method="best" if proves(names[0]) and (method == "best" or not isinstance(method, str)) else names[0],
        methods=tuple(names),
        settings=used,
        norm=teacher.norm,
        eps=teacher.eps_text,
        samples=len(index),
        teacher=theirs.side(),
        student=ours.side(),
        differences=differences(ours, theirs),
        retention=wilson(int((kept & had).sum()), int(had.sum())),
        radius_retention=wilson(int((kept & had & at_least).sum()), int(had.sum())),
        gains=gains,
        losses=losses,
        mcnemar=mcnemar(len(gains), len(losses)),
        curve=tuple(at_radius(radius, ours.radius, theirs.radius) for radius in shown),
        carried_over=carry_over(teacher, student, had, kept, at_least),
        same_copies=_same_copies(teacher, student, names[0]),
        diagnosis=_diagnosis(teacher, student),
        match=_match(teacher, student),
    )


def _match(teacher: Certificates, student: Certificates) -> Matched | None:
    rows = methods.relation(student) if same_teacher(teacher, student) else None
    return None if rows is None else Matched.of(rows, student)


def _diagnosis(teacher: Certificates, student: Certificates) -> Diagnosis | None:
    rows = methods.diagnosis(student) if same_teacher(teacher, student) else None
    return None if rows is None else diagnose(rows)


def _same_copies(teacher: Certificates, student: Certificates, method: str) -> SameCopies | None:
    """Read both networks' votes from the file; rows in memory have none."""
    smoothed = find(method).about is About.SMOOTHED
    if not (smoothed and same_teacher(teacher, student) and Path(student.path).exists()):
        return None
    shared = shared_votes(student[method], student.path)
    return None if shared is None else SameCopies.of(shared)


def plain(value: Any) -> Any:
    """Replace nan by None, as JSON has no nan."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def radii(certificates: Certificates, method: str | Sequence[str] = "best") -> np.ndarray:
    """Return each sample's certified radius: of one method, the largest of several, or the best as in ``compare``."""
    if not isinstance(method, str):
        return _radius(certificates, method)
    check_known(certificates)
    return _radius(certificates, common_methods((certificates,), method))


def figures(certificates: Certificates) -> Side:
    """Return the figures of one file, from the best radius of each sample."""
    check_known(certificates)
    return outcomes_of(certificates, common_methods((certificates,), "best")).side()


def outcomes_of(certificates: Certificates, names: Sequence[str]) -> Outcomes:
    """Return each sample's answers, certified by the best of some methods."""
    radius, rows = _radius(certificates, names), certificates[names[0]]
    attacks = methods.attacks(certificates) if proves(rows.name) else []  # on what is certified itself
    ran = [attack for attack in attacks if not np.isin(attack["status"], FAILURES).all()]
    kept = [attack["correct"] & (attack["status"] != Status.FALSIFIED) for attack in ran]  # an upper limit
    unbroken = np.all(kept, axis=0) if kept else np.full(len(rows), np.nan)
    return Outcomes(rows["correct"].astype(bool), unbroken.astype(float), radius >= certificates.eps, radius)


def _radius(certificates: Certificates, names: Sequence[str]) -> np.ndarray:
    """Return the largest radius over the methods; a misclassified sample has 0 in all of them."""
    return np.maximum.reduce([certificates[name]["radius"] * certificates[name]["correct"] for name in names])
