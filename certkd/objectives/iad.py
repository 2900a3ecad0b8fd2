"""IAD: trust the teacher on an adversarial image as far as it is right there."""

from typing import ClassVar, Literal

from certkd.objectives.base import Term, Terms
from certkd.objectives.kd import kl_each
from certkd.objectives.robust import RobustDistillation, View
from verifiers.core.settings import Number, Share


class Iad(RobustDistillation):
    """mean_i [ KL(t(x) || s(x')) + (1 - w_i) KL(s(x) || s(x')) ], w_i = p_t(y | x')^beta, x' from PGD on CE(s(x'), y).

    This is IAD-I as released. The paper multiplies the teacher's term by w_i (``weigh_teacher``). The student's own
    term counts only after ``start``, a share of the training (epoch 60 of 200 in the release).
    """

    kind: Literal["iad"] = "iad"
    beta: Number = 0.1
    start: Share = 0.3
    weigh_teacher: bool = False
    summary: ClassVar[str] = "the teacher's clean outputs, or the student's own where the teacher is wrong"
    paper: ClassVar[str] = "Zhu et al., arXiv 2106.04928"

    def outer(self, view: View) -> Terms:
        kl = kl_each(view.student_attacked, view.teacher_clean)
        if view.batch.progress <= self.start:
            return {"kl_adversarial": Term(1.0, kl.mean())}
        trust = view.trust(self.beta)
        return {
            "kl_adversarial": Term(1.0, (kl * trust if self.weigh_teacher else kl).mean()),
            "kl_self": Term(1.0, ((1 - trust) * view.self_kl()).mean()),
        }
