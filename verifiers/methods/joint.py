"""The method ``joint``: certify that student and teacher predict the same class everywhere on the ball."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from verifiers.core.columns import ROUNDING, Column
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.question import Question
from verifiers.core.settings import Positive
from verifiers.core.status import About, Guarantee
from verifiers.methods.base import Method, Problems, Summary, at_eps_by_margin
from verifiers.results.rows import MethodRows
from verifiers.results.summaries import joint

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


class Joint(Method):
    """Bound both networks by CROWN in one graph; for copies of one architecture, also the difference of every neuron.

    bound: crown, or sdp-crown for l2 balls.
    tolerance: the search ends when the bracket around the largest certified radius is this share of it.
    time_limit: seconds per sample; after that, the largest radius proved so far counts.
    """

    kind: Literal["joint"] = "joint"
    bound: Literal["crown", "sdp-crown"] = "crown"
    tolerance: Positive = 0.005
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    about: ClassVar[About] = About.PAIR
    claim: ClassVar[str] = "student and teacher both predict this class everywhere on the ball"
    paper: ClassVar[str] = "CROWN on the joint graph; for copies ReluDiff, arXiv 2001.03662"
    cost: ClassVar[str] = "CROWN of both networks per radius tried, two to three times that for copies"
    both: ClassVar[bool] = True
    summary: ClassVar[Summary | None] = joint.summary
    columns: ClassVar[tuple[Column, ...]] = (
        ROUNDING,
        Column("gap", "float64", "logits", "upper bound of |student margin - teacher margin| on the ball at eps"),
        Column("deficit", "float64", "logits", "upper bound of teacher margin - student margin on the ball at eps"),
    )

    def check(self, question: Question) -> None:
        if self.bound == "sdp-crown" and question.norm is not Norm.L2:
            raise InputError(f"method joint: bound 'sdp-crown' follows l2 balls, and the norm is {question.norm}")

    def spreads(self) -> Mapping[str, float]:
        return {"radius": 2 * self.tolerance}

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        return {
            **at_eps_by_margin(rows),
            "its gap is smaller than its deficit": rows["gap"] < rows["deficit"],
            "its gap is negative": rows["gap"] < 0,
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.bound_propagation import JointCertifier

        return JointCertifier.prepare(program, samples, question, self)
