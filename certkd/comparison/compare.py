"""Paired comparison of two certificate files: what the student kept of the teacher's robustness.

Both files must be about the same samples, norm, eps and method settings: then every difference is a difference of the
networks, and statistics are paired, sample by sample.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from certkd.comparison.verdict import VERDICT_METRICS, Verdict, reach_verdict, same_teacher
from verifiers.core.errors import InputError, did_you_mean
from verifiers.core.statistics import Proportion, mcnemar, wilson
from verifiers.core.status import FAILURES, About, Status
from verifiers.methods.registry import certifies, find, proves
from verifiers.results.rows import Certificates
from verifiers.results.summaries.diagnostics import Diagnosis, diagnose
from verifiers.smoothing.shared import SameCopies, shared_votes

#: Quantiles of the radius distribution that tables show.
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: Attributes that two files must share, besides the value of eps.
SHARED = ("data_sha256", "indices_sha256", "norm")
#: Settings that may differ: in which precision a network votes belongs to the network.
OWN = ("dtype",)
#: Rows of the table of radii, about.
ROWS = 8


#: Figures of each network that ``--require`` may ask about, the teacher's with ``teacher_`` before them.
FIGURES = ("clean", "pgd", "certified", "mean_radius")
#: All that ``--require`` may ask about.
METRICS = (
    *("retention", "radius_retention", *FIGURES, *(f"teacher_{name}" for name in FIGURES)),
    *("gains", "losses", "mcnemar", *VERDICT_METRICS),
)


@dataclass(frozen=True)
class Side:
    """One network's figures over all samples; misclassified and abstained ones count with radius 0.

    Attributes:
        clean: share classified correctly; of smoothing, by the smoothed classifier, and abstaining is wrong.
        pgd: share correct and not falsified by PGD at eps; nan when no attack was run, and for smoothing, whose
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
    """Paired mean of student minus teacher, its standard error, and what that would be over unpaired samples."""

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
        mcnemar: two-sided p-value of gains and losses if both were as likely.
    """

    radius: float
    teacher: float
    student: float
    retention: float
    gains: int
    losses: int
    mcnemar: float


@dataclass(frozen=True)
class Comparison:
    """What the student kept.

    Attributes:
        method: whose radii are compared; "best" is the larger of all deterministic methods, sample by sample.
        methods: the methods that those are.
        settings: theirs, by method; the same in both files.
        norm, eps, samples: as in both files.
        teacher, student: each one's figures.
        differences: paired differences of clean, pgd, certified and radius.
        retention: of the samples that the teacher has certified at eps, the share that the student has too.
        radius_retention: of the same samples, the share where the student's radius is also at least the teacher's.
        gains, losses: sample indices certified at eps by the student only, by the teacher only.
        mcnemar: two-sided p-value of their numbers if both were as likely.
        curve: both networks over the radius, eps among them; only at eps where votes stopped once that was decided.
        verdict: what carried the teacher's certificates over and what did not; None without the method transfer.
        same_copies: of smoothing, what both voted on the same noisy copies; None where the student's run did not show
            them to this teacher.
        diagnosis: input gradients and attacks of both networks; None without the method diagnostics.
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
    verdict: Verdict | None
    same_copies: SameCopies | None
    diagnosis: Diagnosis | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; None where a figure is not a number."""
        return dict(plain({**asdict(self), "metrics": self.metrics()}))

    def metrics(self) -> dict[str, float]:
        """The numbers that ``--require`` may ask about, by name."""
        values = {"retention": self.retention.value, "radius_retention": self.radius_retention.value}
        for name in FIGURES:
            values[name] = getattr(self.student, name)
            values[f"teacher_{name}"] = getattr(self.teacher, name)
        values["gains"], values["losses"] = float(len(self.gains)), float(len(self.losses))
        values["mcnemar"] = self.mcnemar
        return values if self.verdict is None else {**values, **self.verdict.metrics()}


def compare(teacher: Certificates, student: Certificates, *, method: str = "best") -> Comparison:
    """Compare two finished certificate files sample by sample.

    Args:
        teacher: the reference.
        student: what is judged.
        method: a certificate method in both files, or "best": each sample's larger radius over all deterministic
            ones, or smoothing's where they have none of those in common.

    Raises:
        InputError: unfinished or failed rows; other data, norm, eps or settings; no such method in both.
    """
    _check_same(teacher, student)
    names = _methods(teacher, student, method)
    ours, theirs = _radius(student, names), _radius(teacher, names)
    eps, settings = teacher.eps, _settings(teacher)
    kept, had = ours >= eps, theirs >= eps
    columns = {
        "clean": (_correct(student, names), _correct(teacher, names)),
        "pgd": (_unfalsified(student, names), _unfalsified(teacher, names)),
        "certified": (kept, had),
        "radius": (ours, theirs),
    }
    index = teacher[names[0]]["index"]
    gains, losses = (tuple(int(i) for i in index[chosen]) for chosen in (kept & ~had, had & ~kept))
    used = {name: settings[name] for name in names}
    shown = _radii_shown(float(max(ours.max(), theirs.max())), eps, used.get("smoothing", {}))
    return Comparison(
        method=method if proves(names[0]) and method == "best" else names[0],
        methods=tuple(names),
        settings=used,
        norm=str(teacher.attributes["norm"]),
        eps=str(teacher.attributes["eps_text"]),
        samples=len(ours),
        teacher=_side(*(pair[1] for pair in columns.values())),
        student=_side(*(pair[0] for pair in columns.values())),
        differences={name: paired(*pair) for name, pair in columns.items()},
        retention=wilson(int((kept & had).sum()), int(had.sum())),
        radius_retention=wilson(int((kept & had & (ours >= theirs)).sum()), int(had.sum())),
        gains=gains,
        losses=losses,
        mcnemar=mcnemar(len(gains), len(losses)),
        curve=tuple(at_radius(radius, ours, theirs) for radius in shown),
        verdict=reach_verdict(teacher, student, had, kept, ours >= theirs),
        same_copies=_same_copies(teacher, student) if names == ["smoothing"] else None,
        diagnosis=_diagnosis(teacher, student),
    )


def _diagnosis(teacher: Certificates, student: Certificates) -> Diagnosis | None:
    if "diagnostics" not in student.methods or not same_teacher(teacher, student):
        return None
    return diagnose(student["diagnostics"])


def _same_copies(teacher: Certificates, student: Certificates) -> SameCopies | None:
    """Votes are read from the file; rows in memory have none."""
    if not same_teacher(teacher, student) or not Path(student.path).exists():
        return None
    shared = shared_votes(student)
    return None if shared is None else SameCopies.of(shared)


def plain(value: Any) -> Any:
    """The same value with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def radii(certificates: Certificates, method: str | Sequence[str] = "best") -> np.ndarray:
    """Certified radius per sample: of one method, of several the larger, or as ``compare`` takes the best."""
    if not isinstance(method, str):
        return _radius(certificates, method)
    return _radius(certificates, _methods(certificates, certificates, method))


def summary(certificates: Certificates) -> Side:
    """One file's figures, by the best radius of each sample."""
    names = _methods(certificates, certificates, "best")
    radius = _radius(certificates, names)
    unfalsified = _unfalsified(certificates, names)
    return _side(_correct(certificates, names), unfalsified, radius >= certificates.eps, radius)


def paired(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Mean of ours - theirs and its standard errors (sample standard deviation over root n)."""
    ours, theirs = ours.astype(float), theirs.astype(float)
    errors = [_standard_error(values) for values in (ours - theirs, ours, theirs)]
    return Difference(float((ours - theirs).mean()), errors[0], math.hypot(*errors[1:]))


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def at_radius(radius: float, ours: Float[np.ndarray, " samples"], theirs: Float[np.ndarray, " samples"]) -> AtRadius:
    """Student (ours) and teacher (theirs) at one radius, from their certified radii."""
    kept, had = ((radii >= radius) & (radii > 0) for radii in (ours, theirs))
    both, gains, losses = int((kept & had).sum()), int((kept & ~had).sum()), int((had & ~kept).sum())
    retention = both / (both + losses) if both + losses else math.nan
    return AtRadius(radius, float(had.mean()), float(kept.mean()), retention, gains, losses, mcnemar(gains, losses))


_OPERATORS = {
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclass(frozen=True)
class Requirement:
    """A condition such as ``retention>=0.9`` on a comparison's metrics."""

    text: str
    metric: str
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Requirement":
        """Read ``metric>=number``.

        Raises:
            InputError: another form.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\S+)\s*", text)
        try:
            if match is None:
                raise ValueError
            metric, operator, bound = match.groups()
            limit = float(bound)
        except ValueError:
            raise InputError(f"--require {text!r} must look like retention>=0.9") from None
        if metric not in METRICS:
            raise InputError(f"--require: unknown metric {metric!r}.{did_you_mean(metric, list(METRICS))}")
        return cls(text, metric, operator, limit)

    def holds(self, comparison: Comparison) -> bool:
        """Whether the comparison meets it; a metric that is nan meets nothing.

        Raises:
            InputError: it is about the verdict, and there is none.
        """
        metrics = comparison.metrics()
        if self.metric not in metrics:
            raise InputError(
                f"--require: {self.metric} needs rows of the method transfer about this teacher: 'certkd transfer' "
                "writes them into the student's file"
            )
        return bool(_OPERATORS[self.operator](metrics[self.metric], self.bound))

    def missed(self, comparison: Comparison) -> str:
        """What to say where it does not hold."""
        value = comparison.metrics()[self.metric]
        found = "there is nothing to measure it by" if math.isnan(value) else f"it is {value:.4f}"
        return f"not met: {self.text} ({found})"


def _check_same(teacher: Certificates, student: Certificates) -> None:
    for certificates in (teacher, student):
        if certificates.pending:
            raise InputError(
                f"{certificates.path} is not finished ({certificates.pending} rows are pending): "
                "run its certify command again"
            )
    if student.attributes.get("imported", False) != teacher.attributes.get("imported", False):
        raise InputError(
            f"{student.path} and {teacher.path} cannot be compared: one was imported from a log, which does not tell "
            "its images"
        )
    for name in SHARED:
        ours, theirs = student.attributes.get(name), teacher.attributes.get(name)
        if ours != theirs:
            raise InputError(
                f"{student.path} and {teacher.path} cannot be compared: they differ in {name} "
                f"({_short(ours)} and {_short(theirs)})"
            )
    if student.eps != teacher.eps:
        texts = [certificates.attributes["eps_text"] for certificates in (student, teacher)]
        raise InputError(f"{student.path} and {teacher.path} cannot be compared: eps is {texts[0]} and {texts[1]}")


def _methods(teacher: Certificates, student: Certificates, method: str) -> list[str]:
    """The methods whose larger radius is taken: several proofs, or one method that holds with confidence 1 - alpha."""
    names = [name for name, rows in teacher.methods.items() if certifies(name) and name in student.methods]
    if method != "best":
        if method not in names:
            raise InputError(f"no certificate method {method!r} in both files.{did_you_mean(method, ['best', *names])}")
        names = [method]
    names = [name for name in names if find(name).about is not About.PAIR]  # their radii are about two networks
    names = [name for name in names if not (_unsupported(teacher, name) or _unsupported(student, name))]
    if not names:
        raise InputError(f"{teacher.path} and {student.path} have no certificate method with an answer in common")
    names = [name for name in names if proves(name)] or names[:1]
    _check_settings(teacher, student, names)
    for certificates in (teacher, student):
        for name in names:
            failed = {status.name: certificates[name].count(status) for status in FAILURES}
            if any(failed.values()):
                what = ", ".join(f"{count} {status}" for status, count in failed.items() if count)
                raise InputError(f"{certificates.path}: rows of {name} have no answer ({what}); certify it again")
    return names


def _settings(certificates: Certificates) -> dict[str, dict[str, Any]]:
    return dict(json.loads(str(certificates.attributes["settings"])))


def _check_settings(teacher: Certificates, student: Certificates, names: Sequence[str]) -> None:
    """The same settings of the methods compared, and of the attack where it tells something about them."""
    attacked = proves(names[0]) and "pgd" in teacher.methods and "pgd" in student.methods
    for name in [*names, *(["pgd"] if attacked else [])]:
        ours, theirs = (_settings(certificates)[name] for certificates in (student, teacher))
        different = [key for key in {**theirs, **ours} if key not in OWN and ours.get(key) != theirs.get(key)]
        if different:
            values = ", ".join(f"{key} {theirs.get(key)} and {ours.get(key)}" for key in different)
            raise InputError(f"the files ran {name} with other settings: {values}")


def _radii_shown(top: float, eps: float, smoothing: Mapping[str, Any]) -> list[float]:
    """Round radii up to the largest, and eps; of votes that stopped early, those that they were asked to decide."""
    question = smoothing.get("question")
    if question == "eps":
        return [eps]
    steps = (smoothing["step"] * 2.0**power for power in itertools.count()) if question == "grid" else _round_numbers()
    step = next(step for step in steps if step * ROWS >= top)
    return sorted({round(step * i, 12) for i in range(int(top / step) + 1)} | {eps})


def _round_numbers() -> Iterator[float]:
    return (digits * 10.0**power for power in itertools.count(-4) for digits in (1.0, 2.5, 5.0))


def _unsupported(certificates: Certificates, name: str) -> bool:
    return certificates[name].count(Status.UNSUPPORTED) > 0


def _radius(certificates: Certificates, names: Sequence[str]) -> np.ndarray:
    """Larger radius over the methods; misclassified samples have 0 in every one."""
    return np.maximum.reduce([certificates[name]["radius"] * certificates[name]["correct"] for name in names])


def _correct(certificates: Certificates, names: Sequence[str]) -> np.ndarray:
    return certificates[names[0]]["correct"].astype(bool)


def _unfalsified(certificates: Certificates, names: Sequence[str]) -> np.ndarray:
    """Correct and not falsified, per sample; nan without an attack on the classifier that is certified."""
    if "pgd" not in certificates.methods or not proves(names[0]):
        return np.full(len(certificates[names[0]]), np.nan)
    return (certificates["pgd"]["status"] == Status.NOT_CERTIFIED).astype(float)


def _side(correct: np.ndarray, unfalsified: np.ndarray, certified: np.ndarray, radius: np.ndarray) -> Side:
    return Side(
        clean=float(correct.mean()),
        pgd=float(unfalsified.mean()),
        certified=float(certified.mean()),
        mean_radius=float(radius.mean()),
        quantiles=tuple(float(q) for q in np.quantile(radius, QUANTILES)),
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:12]}…"
