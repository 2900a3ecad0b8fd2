"""Summarise the rows of the method ``diagnostics``."""

import math
from dataclasses import dataclass

import numpy as np

from verifiers.core.statistics import chance_limit
from verifiers.core.status import Status
from verifiers.results.rows import MethodRows

#: An attack on the margin that succeeds on so many more samples than one on the cross-entropy shows masked gradients.
MASKED = 0.05


#: Mean l2 norm of the cross-entropy's gradient that counts as none: over a distance of 1 it changes by so many nats.
FLAT = 0.01


#: Fewer samples say nothing about guessing.
ENOUGH = 20


@dataclass(frozen=True)
class Diagnosis:
    """The diagnostics of a student over the samples that it classifies correctly; nan where there are none.

    Attributes:
        samples: how many those are.
        clean: share of all samples that they are.
        gradient_gap, gradient_gap_dual, gradient_cosine, gradient_norm, margin_gradient_gap, teacher_entropy, ce_llm:
            means of the columns of these names; ``gradient_gap`` is GD and ``gradient_cosine`` GC.
        ce_attack, margin_attack: shares on which each attack succeeded.
        excess, excess_error: of the margin attack over the other, and the standard error over paired samples.
        fooled: samples on which an attack succeeded.
        transfer: of them, the share on which the teacher is wrong at the same point; nan without any.
        teacher_right, teacher_right_attacked: shares on which the teacher is right at the image and at that point.
        warnings: what these figures must not be trusted for, one line each.
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


#: Columns that a diagnosis has the means of.
MEANS = (
    *("gradient_gap", "gradient_gap_dual", "gradient_cosine", "gradient_norm", "margin_gradient_gap"),
    *("teacher_entropy", "ce_llm", "ce_attack", "margin_attack", "teacher_right", "teacher_right_attacked"),
)


def diagnose(rows: MethodRows) -> Diagnosis | None:
    """Sum up the rows of the method ``diagnostics``; None where it could not run."""
    if rows.count(Status.UNSUPPORTED):
        return None
    asked = rows["status"] == Status.NOT_CERTIFIED
    means = {name: _mean(rows[name][asked]) for name in MEANS}
    more = rows["margin_attack"][asked].astype(float) - rows["ce_attack"][asked]
    fooled = rows["transfers"][asked] >= 0
    excess, error = _mean(more), float(more.std(ddof=1)) / math.sqrt(len(more)) if len(more) > 1 else math.nan
    clean = _mean(rows["correct"])
    collapsed = _collapse(clean, len(rows), int(rows.attributes.get("classes", 0)), means["gradient_norm"])
    return Diagnosis(
        samples=int(asked.sum()),
        clean=clean,
        **means,
        excess=excess,
        excess_error=error,
        fooled=int(fooled.sum()),
        transfer=_mean(rows["transfers"][asked][fooled]),
        warnings=(*_masking(means["ce_attack"], means["margin_attack"], excess, error), *collapsed),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _masking(ce: float, margin: float, excess: float, error: float) -> list[str]:
    """Whether the cross-entropy hides what the margin shows: enough to matter, and more than chance would."""
    if not (excess > MASKED and excess > 2 * error):  # nothing is known of one sample's error
        return []
    return [
        f"gradient masking: the attack on the margin succeeds on {margin:.1%} of the samples, PGD on the cross-entropy "
        f"on {ce:.1%} (paired difference {excess:.1%}, standard error {error:.1%}): do not trust PGD on the "
        "cross-entropy for this student"
    ]


def _collapse(clean: float, samples: int, classes: int, gradient: float) -> list[str]:
    """Whether a network guesses and has hardly any gradient: its outputs do not depend on the image."""
    if samples < ENOUGH or classes < 2 or not (clean <= chance_limit(classes, samples) and gradient < FLAT):
        return []
    return [
        f"collapse: clean accuracy is {clean:.1%}, near chance for {classes} classes, and the mean gradient norm "
        f"{gradient:.2g}: the student is almost constant, train it with a smaller weight of the alignment"
    ]
