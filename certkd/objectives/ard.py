"""Adversarially robust distillation, in the two meanings of its name."""

from typing import ClassVar, Literal

from certkd.objectives.base import Term, Terms
from certkd.objectives.kd import softened_kl
from certkd.objectives.kdiga import Kdiga, Point
from certkd.objectives.robust import RobustDistillation, View
from verifiers.core.settings import Number, Positive, Share


class Ard(RobustDistillation):
    """alpha T^2 KL(t(x) || s(x')) + (1 - alpha) CE(s(x), y), x' from PGD on CE(s(x'), y).

    The teacher sees the clean image. The defaults are those of the authors' code, where cross-entropy is left out.
    """

    kind: Literal["ard"] = "ard"
    alpha: Share = 1.0
    temperature: Positive = 30.0
    summary: ClassVar[str] = "the teacher's clean outputs on PGD examples (Goldblum's)"
    paper: ClassVar[str] = "Goldblum et al., arXiv 1905.09747"

    def outer(self, view: View) -> Terms:
        terms = {}
        if self.alpha > 0:
            kl = softened_kl(view.student_attacked, view.teacher_clean, self.temperature)
            terms["kl_adversarial"] = Term(self.alpha, kl)
        if self.alpha < 1:
            terms["ce"] = Term(1 - self.alpha, view.ce_clean())
        return terms


class ArdShao(Kdiga):
    """lambda_kl T^2 KL(t(x') || s(x')) + lambda_ce CE(s(x), y), x' from PGD on CE(s(x'), y): what the KDIGA authors
    call ARD.

    The teacher sees the adversarial image, unlike in Goldblum's. With lambda_iga above 0 it is the authors'
    KDIGA-ARD_C, and with ``point: adversarial`` in addition their KDIGA-ARD_A. IGDM on top of it is ``lambda_iga: 1,
    target: finite_difference, point: adversarial, ramp: 1``.
    """

    kind: Literal["ard_shao"] = "ard_shao"  # type: ignore[assignment]
    eps: Positive
    lambda_iga: Number = 0.0
    kl_point: Point | None = "adversarial"
    summary: ClassVar[str] = "the teacher's outputs at PGD examples (the KDIGA authors' ARD)"
    paper: ClassVar[str] = "Shao et al., arXiv 2110.12072"
