"""Summarise the transfer of the teacher's certificates: which bound carries them over, and what blocks it."""

import math
from enum import IntEnum

import numpy as np

from verifiers.core.table import Part, Table, figure
from verifiers.results.rows import Certificates, MethodRows


class Blocker(IntEnum):
    """The largest term between the teacher's certified margin and the student's, for a sample that is not certified."""

    NONE = 0
    TEACHER = 1  # the teacher has no certificate to pass on
    DEFICIT = 2  # the student's margin at the image is smaller
    GRADIENT = 3  # the gradients differ
    STUDENT = 4  # the student is not linear enough
    REFERENCE = 5  # the teacher is not linear enough


#: Why the student does not keep a sample, in words.
REASONS = {
    Blocker.NONE: "certified by CROWN here but by none of the methods compared",
    Blocker.TEACHER: "where the teacher is not certified by CROWN",
    Blocker.DEFICIT: "blocked by the student's smaller margin",
    Blocker.GRADIENT: "blocked by the gradient gap",
    Blocker.STUDENT: "blocked by the student's non-linearity",
    Blocker.REFERENCE: "blocked by the teacher's non-linearity",
}
#: The bounds of a row. A cross-entropy certifies where it is below log 2, a margin where it is above 0.
_BOUNDS = {
    "direct": "the student's own margin, by CROWN (no teacher needed)",
    "theorem_a": "A: teacher's least margin - deficit - eps gap - non-linearities",
    "theorem_b": "B: teacher's margin - deficit - eps (gradient + gap) - non-linearity",
    "theorem_c1": "C1: as B, in the cross-entropy",
    "theorem_c2": "C2: as A, in the cross-entropy",
    "joint": "joint: teacher's least margin + least difference of the margins",
}
_TERMS = {
    "deficit": "output deficit a",
    "gradient_gap": "gradient gap, eps b",
    "gamma_student": "student's non-linearity",
    "gamma_teacher": "teacher's non-linearity",
}


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """Tabulate how many samples each bound certifies at eps, and the sizes of the terms."""
    answered = np.isfinite(rows["deficit"])
    counts = []
    for name, words in _BOUNDS.items():
        holds = rows[name] < math.log(2) if name.startswith("theorem_c") else rows[name] > 0
        holds &= (rows["teacher"] > 0) | (name == "direct")
        counts.append([words, str(int((holds & answered).sum()))])
    sizes = []
    for name, words in _TERMS.items():
        values = rows[name][answered] * (rows.eps if name == "gradient_gap" else 1.0)
        quantiles = np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else [math.nan] * 3
        sizes.append([words, *(figure(float(value)) for value in quantiles)])
    title = f"Bounds that certify the student at eps, of {len(rows)} samples"
    return [
        Table(title, ["bound", "count"], counts),
        Table("Terms at eps, logits (largest over classes)", ["term", "25%", "median", "75%"], sizes),
    ]
