"""Paired comparison of two certificate files: what the student kept of the teacher's robustness.

Both files must be about the same samples, norm, eps and method settings: then every difference is a difference of the
networks, and statistics are paired, sample by sample.
"""

import json
import math
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from verifiers.certificate import FAILURES, Status
from verifiers.errors import InputError, did_you_mean
from verifiers.store import Certificates

#: Quantiles of the radius distribution that tables show.
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
#: Attributes that two files must share, besides the value of eps.
SHARED = ("data_sha256", "indices_sha256", "norm")


@dataclass(frozen=True)
class Side:
    """One network's figures over all samples; misclassified ones count with radius 0.

    Attributes:
        clean: share classified correctly.
        pgd: share correct and not falsified by PGD at eps; nan when no attack was run.
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
    """Paired mean of student minus teacher, and its standard error."""

    mean: float
    standard_error: float


@dataclass(frozen=True)
class Share:
    """A share of cases with its 95 % Wilson interval; nan when there are no cases."""

    hits: int
    cases: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """What the student kept.

    Attributes:
        method: whose radii are compared; "best" is the larger of all deterministic methods, sample by sample.
        norm, eps, samples: as in both files.
        teacher, student: each one's figures.
        differences: paired differences of clean, pgd, certified and radius.
        retention: of the samples that the teacher has certified at eps, the share that the student has too.
        radius_retention: of the same samples, the share where the student's radius is also at least the teacher's.
        gains, losses: sample indices certified at eps by the student only, by the teacher only.
    """

    method: str
    norm: str
    eps: str
    samples: int
    teacher: Side
    student: Side
    differences: dict[str, Difference]
    retention: Share
    radius_retention: Share
    gains: tuple[int, ...]
    losses: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; None where a figure is not a number."""
        return dict(plain({**asdict(self), "metrics": self.metrics()}))

    def metrics(self) -> dict[str, float]:
        """The numbers that ``--require`` may ask about, by name."""
        values = {"retention": self.retention.value, "radius_retention": self.radius_retention.value}
        for name in ("clean", "pgd", "certified", "mean_radius"):
            values[name] = getattr(self.student, name)
            values[f"teacher_{name}"] = getattr(self.teacher, name)
        values["gains"], values["losses"] = float(len(self.gains)), float(len(self.losses))
        return values


def compare(teacher: Certificates, student: Certificates, *, method: str = "best") -> Comparison:
    """Compare two finished certificate files sample by sample.

    Args:
        teacher: the reference.
        student: what is judged.
        method: a deterministic method in both files, or "best": each sample's larger radius over all of them.

    Raises:
        InputError: unfinished or failed rows; other data, norm, eps or settings; no such method in both.
    """
    _check_same(teacher, student)
    names = _methods(teacher, student, method)
    ours, theirs = _radius(student, names), _radius(teacher, names)
    eps = teacher.eps
    kept, had = ours >= eps, theirs >= eps
    columns = {
        "clean": (_correct(student), _correct(teacher)),
        "pgd": (_unfalsified(student), _unfalsified(teacher)),
        "certified": (kept, had),
        "radius": (ours, theirs),
    }
    index = teacher[names[0]]["index"]
    return Comparison(
        method=method if method == "best" else names[0],
        norm=str(teacher.attributes["norm"]),
        eps=str(teacher.attributes["eps_text"]),
        samples=len(ours),
        teacher=_side(*(pair[1] for pair in columns.values())),
        student=_side(*(pair[0] for pair in columns.values())),
        differences={name: paired(*pair) for name, pair in columns.items()},
        retention=wilson(int((kept & had).sum()), int(had.sum())),
        radius_retention=wilson(int((kept & had & (ours >= theirs)).sum()), int(had.sum())),
        gains=tuple(int(i) for i in index[kept & ~had]),
        losses=tuple(int(i) for i in index[had & ~kept]),
    )


def plain(value: Any) -> Any:
    """The same value with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def radii(certificates: Certificates, method: str = "best") -> np.ndarray:
    """Certified radius per sample: of one method, or the larger over all deterministic ones."""
    return _radius(certificates, _methods(certificates, certificates, method))


def summary(certificates: Certificates) -> Side:
    """One file's figures, by the best deterministic radius of each sample."""
    radius = radii(certificates)
    return _side(_correct(certificates), _unfalsified(certificates), radius >= certificates.eps, radius)


def paired(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Mean of ours - theirs and its standard error (sample standard deviation over root n)."""
    difference = ours.astype(float) - theirs.astype(float)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else math.nan
    return Difference(float(difference.mean()), spread / math.sqrt(len(difference)))


def wilson(hits: int, cases: int, confidence: float = 0.95) -> Share:
    """A binomial share with Wilson's score interval. Source: Wilson, J. Am. Stat. Assoc. 22, 1927."""
    if cases == 0:
        return Share(0, 0, math.nan, math.nan, math.nan)
    z = float(ndtri(0.5 + confidence / 2))
    share = hits / cases
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    return Share(hits, cases, share, max(0.0, middle - half), min(1.0, middle + half))


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
            return cls(text, metric, operator, float(bound))
        except ValueError:
            raise InputError(f"--require {text!r} must look like retention>=0.9") from None

    def holds(self, comparison: Comparison) -> bool:
        """Whether the comparison meets it; a metric that is nan meets nothing.

        Raises:
            InputError: no such metric.
        """
        metrics = comparison.metrics()
        if self.metric not in metrics:
            raise InputError(f"--require: unknown metric {self.metric!r}.{did_you_mean(self.metric, list(metrics))}")
        return bool(_OPERATORS[self.operator](metrics[self.metric], self.bound))


def _check_same(teacher: Certificates, student: Certificates) -> None:
    for certificates in (teacher, student):
        if certificates.pending:
            raise InputError(
                f"{certificates.path} is not finished ({certificates.pending} rows are pending): "
                "run its certify command again"
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
    common = [name for name, rows in teacher.methods.items() if rows.deterministic and name in student.methods]
    if method != "best" and method not in common:
        raise InputError(f"no deterministic method {method!r} in both files.{did_you_mean(method, ['best', *common])}")
    names = common if method == "best" else [method]
    names = [name for name in names if not (_unsupported(teacher, name) or _unsupported(student, name))]
    if not names:
        raise InputError(f"{teacher.path} and {student.path} have no deterministic method with an answer in common")
    settings = [json.loads(str(c.attributes["settings"])) for c in (teacher, student)]
    attacks = ["pgd"] if "pgd" in teacher.methods and "pgd" in student.methods else []
    for name in [*names, *attacks]:
        if settings[0][name] != settings[1][name]:
            raise InputError(f"the files ran {name} with other settings: {settings[0][name]} and {settings[1][name]}")
    for certificates in (teacher, student):
        for name in names:
            failed = {status.name: certificates[name].count(status) for status in FAILURES}
            if any(failed.values()):
                what = ", ".join(f"{count} {status}" for status, count in failed.items() if count)
                raise InputError(f"{certificates.path}: rows of {name} have no answer ({what}); certify it again")
    return names


def _unsupported(certificates: Certificates, name: str) -> bool:
    return certificates[name].count(Status.UNSUPPORTED) > 0


def _radius(certificates: Certificates, names: list[str]) -> np.ndarray:
    """Larger radius over the methods; misclassified samples have 0 in every one."""
    return np.maximum.reduce([certificates[name]["radius"] * certificates[name]["correct"] for name in names])


def _correct(certificates: Certificates) -> np.ndarray:
    return next(iter(certificates.methods.values()))["correct"].astype(bool)


def _unfalsified(certificates: Certificates) -> np.ndarray:
    """Correct and not falsified, per sample; nan without an attack."""
    if "pgd" not in certificates.methods:
        return np.full(len(_correct(certificates)), np.nan)
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
