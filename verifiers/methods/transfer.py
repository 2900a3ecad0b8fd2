"""The method ``transfer``: find which of the teacher's certificates carry over to the student."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from verifiers.core.columns import ROUNDING, Column
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import About, Guarantee, Status
from verifiers.methods.base import ATTACKED, REPEATS, Method, Problems, Summary
from verifiers.results.rows import MethodRows
from verifiers.results.summaries import transfer
from verifiers.results.summaries.transfer import Blocker

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


def _bound(name: str, description: str, units: str = "logits") -> Column:
    return Column(name, "float64", units, description)


class Transfer(Method):
    """Apply theorems A, B and C with certified terms, and the joint bound of the difference: ``linearity.transfer``.

    steps: steps of the attack on the shortfall.
    time_limit: seconds per sample.
    """

    kind: Literal["transfer"] = "transfer"
    steps: Count = 10
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    about: ClassVar[About] = About.PAIR
    claim: ClassVar[str] = (
        "the teacher's certificate carries over: its bounds and the student's bounded difference keep the class at eps"
    )
    paper: ClassVar[str] = (
        "theorems A, B, C of this toolkit, after Shao et al., arXiv 2110.12072; joint bounds by CROWN"
    )
    cost: ClassVar[str] = "CROWN of student, teacher and both together at one radius, with two more rows per class"
    summary: ClassVar[Summary | None] = transfer.summary
    columns: ClassVar[tuple[Column, ...]] = (
        ROUNDING,
        _bound("direct", "the student's own least margin on the ball at eps, by CROWN"),
        _bound("teacher", "the teacher's least margin towards the student's class, by CROWN"),
        _bound("theorem_a", "the student's least margin, from the teacher's least ones"),
        _bound("theorem_b", "the student's least margin, from the teacher's values and gradients"),
        _bound("joint", "the student's least margin, from the teacher's least ones and the joint differential bound"),
        _bound("theorem_c1", "the student's largest cross-entropy, from the teacher's value and gradient", "nats"),
        _bound("theorem_c2", "the student's largest cross-entropy, from the teacher's largest one", "nats"),
        _bound("deficit", "largest output deficit a of a margin at the image"),
        _bound("gradient_gap", "largest dual norm b of the difference of a margin's gradients", "logits per pixel"),
        _bound("gamma_student", "bound: how far any margin of the student falls below its linearisation"),
        _bound("gamma_teacher", "bound: how far any margin of the teacher rises above its linearisation"),
        _bound(
            "shortfall",
            "bound of a + eps b + gamma_minus(student) - gamma_minus(teacher), the largest over classes: at most 0, "
            "the student's first-order certificate at eps is no smaller than the teacher's; nan for many classes",
        ),
        Column("blocker", "int64", "", "; ".join(f"{b.value} {b.name}" for b in Blocker)),
    )

    def spreads(self) -> Mapping[str, float]:
        return {"shortfall": ATTACKED}

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        certified, tried = rows["status"] == Status.CERTIFIED, rows["status"] == Status.NOT_CERTIFIED
        teacher, margin, half = rows["teacher"] > 0, rows["margin"] > 0, math.log(2.0)
        bounds = margin | (rows["theorem_c1"] < half) | (rows["theorem_c2"] < half)
        least = np.fmax.reduce([rows[name] for name in ("theorem_a", "theorem_b", "joint")])
        return {
            "it is certified at another radius than eps": certified & (rows["radius"] != rows.eps),
            "none of its bounds carries the teacher's certificate over": certified & ~(bounds & teacher),
            "its bounds carry the teacher's certificate over": tried & margin & teacher,
            "its margin is below one of its bounds": rows["margin"] < least - REPEATS * np.abs(least),
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.linearity.transfer_certifier import TransferCertifier

        return TransferCertifier.prepare(program, samples, question, self)
