"""ARD: adversarially robust distillation of the teacher's clean outputs."""

from typing import ClassVar, Literal

from certkd.objectives.base import Term, Terms
from certkd.objectives.kd import softened_kl
from certkd.objectives.robust import RobustDistillation, View
from verifiers.core.settings import Positive, Share


class Ard(RobustDistillation):
    """alpha T^2 KL(t(x) || s(x')) + (1 - alpha) CE(s(x), y), x' from PGD on CE(s(x'), y).

    The teacher sees the clean image. In the KDIGA authors' version of ARD it sees x' instead: that is ``kdiga`` with
    ``lambda_iga: 0`` and ``kl_point: adversarial``. The defaults are those of the authors' code, which leaves out
    cross-entropy.
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
