"""The method ``local-linearity``: bound the distance of margins and cross-entropy from their linearisations."""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from verifiers.core.columns import ROUNDING, Column
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import Guarantee
from verifiers.methods.base import REPEATS, Method, Problems, at_eps_by_margin
from verifiers.results.rows import MethodRows

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


def _gamma(name: str, description: str, guarantee: Guarantee = Guarantee.DETERMINISTIC) -> Column:
    return Column(name, "float64", "logits", description, guarantee=guarantee)


class LocalLinearity(Method):
    """Bound the distance from the linearisation by proof, and estimate it by attacks.

    steps: steps of each attack.
    time_limit: seconds per sample.
    """

    kind: Literal["local-linearity"] = "local-linearity"
    steps: Count = 20
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    claim: ClassVar[str] = (
        "each margin falls along its gradient and by gamma_minus at most, and stays positive within the radius"
    )
    paper: ClassVar[str] = (
        "Qin et al., arXiv 1907.02610; Shao et al., arXiv 2110.12072; bounds by CROWN, arXiv 1811.00866"
    )
    cost: ClassVar[str] = "CROWN at one radius with two more rows per class, and a short attack"
    columns: ClassVar[tuple[Column, ...]] = (
        ROUNDING,
        Column("gradient", "float64", "logits per pixel", "largest dual norm of a margin's gradient at the image"),
        _gamma("gamma_minus", "bound: how far any margin falls below its linearisation on the ball at eps"),
        _gamma("gamma_plus", "bound: how far any margin rises above its linearisation on the ball at eps"),
        _gamma("gamma_relaxation", "bound of both, by linear relaxation"),
        _gamma("gamma_interval", "bound of both, by an interval Jacobian; nan where matrices were not written out"),
        _gamma("gamma_curvature", "bound of both, by curvature; l2 and l1, smooth activations"),
        _gamma("gamma_attack", "found: of the margin to the runner-up, the larger side", Guarantee.ESTIMATE),
        _gamma("ce_gamma_minus", "bound: how far the cross-entropy falls below its linearisation"),
        _gamma("ce_gamma_plus", "bound: how far the cross-entropy rises above its linearisation"),
        _gamma("ce_gamma_attack", "found: of the cross-entropy, the larger side", Guarantee.ESTIMATE),
        _gamma("ce_llm", "found: of the cross-entropy, signed, by 50 sign steps of 0.1; linf", Guarantee.ESTIMATE),
    )

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        most = np.fmax(rows["gamma_minus"], rows["gamma_plus"]) * (1 + REPEATS) + REPEATS
        loss = np.fmax(rows["ce_gamma_minus"], rows["ce_gamma_plus"]) * (1 + REPEATS) + REPEATS
        return {
            **at_eps_by_margin(rows),
            "its radius is above eps": rows["radius"] > rows.eps,
            "an attack breaks its bound of gamma": rows["gamma_attack"] > most,
            "an attack breaks its bound of the cross-entropy's gamma": rows["ce_gamma_attack"] > loss,
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.linearity.certifier import LinearityCertifier

        return LinearityCertifier.prepare(program, samples, question, self)
