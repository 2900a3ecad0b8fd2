"""Summarise diagnostics: gradients and attacks of a student, with warnings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from verifiers.core.statistics import chance_limit
from verifiers.core.status import Status
from verifiers.core.table import Part, Table, figure, percent
from verifiers.results.rows import Certificates, MethodRows

#: Gradients are masked when the margin attack succeeds on this share more of the samples than the cross-entropy one.
MASKED = 0.05
#: A mean l2 norm of the cross-entropy's gradient below this counts as none: nats over a distance of 1.
FLAT = 0.01
#: With fewer samples, guessing is not diagnosed.
ENOUGH = 20


@dataclass(frozen=True)
class Diagnosis:
    """The diagnostics of a student over the samples that it classifies correctly; nan where there are none.

    Attributes:
        samples: their number.
        clean: their share of all samples.
        gradient_gap, gradient_gap_dual, gradient_cosine, gradient_norm, margin_gradient_gap, teacher_entropy, ce_llm:
            means of the columns of these names; ``gradient_gap`` is GD and ``gradient_cosine`` GC.
        ce_attack, margin_attack: shares on which each attack succeeded.
        excess, excess_error: of the margin attack over the other, and its standard error over paired samples.
        fooled: samples on which an attack succeeded.
        transfer: of them, the share on which the teacher is wrong at the same point; nan without any.
        teacher_right, teacher_right_attacked: shares on which the teacher is right at the image and at that point.
        warnings: why some figures must not be trusted, one line each.
    """

    samples: int
    clean: float
    gradient_gap: float
    gradient_gap_dual: float
    gradient_cosine: float
    gradient_norm: float
    margin_gradient_gap: float
    teacher_entropy: float
    ce_llm: float
    ce_attack: float
    margin_attack: float
    excess: float
    excess_error: float
    fooled: int
    transfer: float
    teacher_right: float
    teacher_right_attacked: float
    warnings: tuple[str, ...]


#: Columns whose means a diagnosis holds.
MEANS = (
    *("gradient_gap", "gradient_gap_dual", "gradient_cosine", "gradient_norm", "margin_gradient_gap"),
    *("teacher_entropy", "ce_llm", "ce_attack", "margin_attack", "teacher_right", "teacher_right_attacked"),
)


def diagnose(rows: MethodRows) -> Diagnosis | None:
    """Summarise the rows of the method ``diagnostics``; None if it could not run."""
    if rows.count(Status.UNSUPPORTED):
        return None
    answered = rows["status"] == Status.NOT_CERTIFIED
    means = {name: _mean(rows[name][answered]) for name in MEANS}
    more = rows["margin_attack"][answered].astype(float) - rows["ce_attack"][answered]
    fooled = rows["transfers"][answered] >= 0
    excess, error = _mean(more), float(more.std(ddof=1)) / math.sqrt(len(more)) if len(more) > 1 else math.nan
    clean = _mean(rows["correct"])
    collapsed = _collapse(clean, len(rows), int(rows.attributes.get("classes", 0)), means["gradient_norm"])
    return Diagnosis(
        samples=int(answered.sum()),
        clean=clean,
        **means,
        excess=excess,
        excess_error=error,
        fooled=int(fooled.sum()),
        transfer=_mean(rows["transfers"][answered][fooled]),
        warnings=(*_masking(means["ce_attack"], means["margin_attack"], excess, error), *collapsed),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _masking(ce: float, margin: float, excess: float, error: float) -> list[str]:
    """Warn if the margin attack succeeds more often than the cross-entropy one, by more than chance explains."""
    if not (excess > MASKED and excess > 2 * error):  # nothing is known of one sample's error
        return []
    return [
        f"gradient masking: the attack on the margin succeeds on {margin:.1%} of the samples, PGD on the cross-entropy "
        f"on {ce:.1%} (paired difference {excess:.1%}, standard error {error:.1%}): do not trust PGD on the "
        "cross-entropy for this student"
    ]


def _collapse(clean: float, samples: int, classes: int, gradient: float) -> list[str]:
    """Warn if a network guesses and has almost no gradient: its outputs do not depend on the image."""
    if samples < ENOUGH or classes < 2 or not (clean <= chance_limit(classes, samples) and gradient < FLAT):
        return []
    return [
        f"collapse: clean accuracy is {clean:.1%}, near chance for {classes} classes, and the mean gradient norm "
        f"{gradient:.2g}: the student is almost constant, train it with a smaller weight of the alignment"
    ]


#: The figures of a diagnosis in the order in which they are read, and how each is written.
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "gradient_gap": ("GD: gap of the cross-entropy's gradients, l2", figure),
    "gradient_gap_dual": ("the same in the dual norm of {norm}", figure),
    "gradient_cosine": ("GC: cosine of the two", figure),
    "gradient_norm": ("the student's gradient, l2", figure),
    "margin_gradient_gap": ("gap of the margins' gradients, dual norm per pixel", figure),
    "ce_llm": ("the student's local linearity LLM, by attack (nats)", figure),
    "ce_attack": ("PGD on the cross-entropy succeeds", percent),
    "margin_attack": ("PGD on the margin succeeds", percent),
    "transfer": ("of what succeeds, the teacher falls for", percent),
    "teacher_entropy": ("the teacher's entropy at attacked points x' (nats)", figure),
    "teacher_right": ("teacher right at x", percent),
    "teacher_right_attacked": ("teacher right at x'", percent),
}
#: Students that fit next to each other into 80 columns.
_ABREAST = 3


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """Tabulate the figures, and warn of what must not be trusted."""
    found = diagnose(rows)
    return [] if found is None else side_by_side({"student": found}, rows.norm, rows.eps_text)


def side_by_side(named: Mapping[str, Diagnosis], norm: str, eps: str) -> list[Part]:
    """Tabulate several students next to each other, then their warnings."""
    title = f"Diagnostics (estimates), {norm} eps {eps}, means"
    tables, names = [], list(named)
    for some in (names[start : start + _ABREAST] for start in range(0, len(names), _ABREAST)):
        lines = [["samples that the student gets right", *(str(named[name].samples) for name in some)]]
        for field, (words, written) in _FIGURES.items():
            lines.append([words.format(norm=norm), *(written(getattr(named[name], field)) for name in some)])
        tables.append(Table(title, ["figure", *some], lines))
    return [*tables, *(f"warning: {name}: {text}" for name, found in named.items() for text in found.warnings)]
