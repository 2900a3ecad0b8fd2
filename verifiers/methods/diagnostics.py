"""The method ``diagnostics``: compare the input gradients of student and teacher, and attack the student."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from verifiers.core.columns import Column
from verifiers.core.question import Question
from verifiers.core.settings import Count
from verifiers.core.status import About, Guarantee, Status
from verifiers.methods.base import REPEATS, Method, Problems, Summary
from verifiers.results.rows import MethodRows
from verifiers.results.summaries import diagnostics

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


def _flag(name: str, description: str) -> Column:
    return Column(name, "int8", "", f"1 when {description}, 0 when not, -1 when not evaluated")


class Diagnostics(Method):
    """Estimate how much of the teacher's local behaviour was distilled; the estimates prove nothing.

    steps, restarts: steps and restarts of each attack.
    """

    kind: Literal["diagnostics"] = "diagnostics"
    steps: Count = 30
    restarts: Count = 4
    guarantee: ClassVar[Guarantee] = Guarantee.ESTIMATE
    about: ClassVar[About] = About.PAIR
    claim: ClassVar[str] = (
        "similarity of the input gradients of student and teacher, and the effect of attacks on the student"
    )
    paper: ClassVar[str] = (
        "Shao et al., arXiv 2110.12072; gaps and cosines: arXiv 2312.03286; attacks: Madry et al., arXiv 1706.06083"
    )
    cost: ClassVar[str] = "4 x steps x restarts forward passes of the student, a few of the teacher"
    summary: ClassVar[Summary | None] = diagnostics.summary
    columns: ClassVar[tuple[Column, ...]] = (
        Column(
            "gradient_gap", "float64", "nats per pixel", "l2 norm of the cross-entropy's gradient, student - teacher"
        ),
        Column("gradient_gap_dual", "float64", "nats per pixel", "the same in the dual norm of the ball's"),
        Column("gradient_cosine", "float64", "", "cosine of the two gradients; 0 where one of them vanishes"),
        Column("gradient_norm", "float64", "nats per pixel", "l2 norm of the student's gradient of the cross-entropy"),
        Column(
            "margin_gradient_gap",
            "float64",
            "logits per pixel",
            "dual norm of the gradient of the margin to the student's runner-up, student - teacher",
        ),
        _flag("ce_attack", "PGD on the cross-entropy makes the student wrong within eps"),
        _flag("margin_attack", "PGD on the margin makes the student wrong within eps"),
        _flag("transfers", "the teacher is also wrong at the student's adversarial example, if one was found"),
        Column(
            "teacher_entropy",
            "float64",
            "nats",
            "entropy of the teacher's softmax at the point of smallest student margin that the attacks found",
        ),
        _flag("teacher_right", "the teacher is right at the image"),
        _flag("teacher_right_attacked", "the teacher is right at the point of smallest student margin"),
        Column(
            "ce_llm", "float64", "nats", "found: local linearity of the student, signed, by 50 sign steps of 0.1; linf"
        ),
    )

    def spreads(self) -> Mapping[str, float]:
        return {"teacher_entropy": math.inf}  # at one of several points of nearly the same margin

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        flags = ("ce_attack", "margin_attack", "transfers", "teacher_right", "teacher_right_attacked")
        tried = rows["status"] == Status.NOT_CERTIFIED
        fooled = (rows["ce_attack"] == 1) | (rows["margin_attack"] == 1)
        lost = fooled & (rows["teacher_right_attacked"] == 0)
        return {
            "a flag is none of -1, 0 and 1": np.any([~np.isin(rows[name], (-1, 0, 1)) for name in flags], axis=0),
            "an attack succeeds and the margin is not negative, or the reverse": tried
            & (fooled != (rows["margin"] < 0)),
            "it transfers and the teacher is right there, or the reverse": tried
            & fooled
            & (lost != (rows["transfers"] == 1)),
            "it transfers and no attack succeeds": tried & ~fooled & (rows["transfers"] != -1),
            "its cosine is outside [-1, 1]": np.abs(rows["gradient_cosine"]) > 1 + REPEATS,
            "an entropy or a length is negative": np.any(
                [rows[name] < 0 for name in ("teacher_entropy", "gradient_gap", "gradient_gap_dual", "gradient_norm")],
                axis=0,
            ),
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.linearity.diagnostics_certifier import DiagnosticsCertifier

        return DiagnosticsCertifier.prepare(program, samples, question, self)
