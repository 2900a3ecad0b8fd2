"""AKD: adversarial training on a mixture of label and teacher."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.objectives.base import Term, Terms
from certkd.objectives.kd import softened_kl
from certkd.objectives.robust import RobustDistillation, View
from verifiers.core.settings import Positive, Share


class Akd(RobustDistillation):
    """(1 - alpha) CE(s(x'), y) + alpha T^2 KL(t(x') || s(x')), x' from PGD on CE(s(x'), y).

    At T = 1 this is, up to a constant, cross-entropy with the mixture (1 - alpha) y + alpha t(x') as its target. Only
    the paper's abstract was read, which says "a mixture of the original labels and the teacher outputs"; here the
    teacher sees x'.
    """

    kind: Literal["akd"] = "akd"
    alpha: Share = 0.5
    temperature: Positive = 1.0
    summary: ClassVar[str] = "label and the teacher's outputs on PGD examples"
    paper: ClassVar[str] = "Maroto et al., arXiv 2203.07159 (abstract)"

    def outer(self, view: View) -> Terms:
        terms = {"ce_adversarial": Term(1 - self.alpha, F.cross_entropy(view.student_attacked, view.batch.y))}
        if self.alpha > 0:
            kl = softened_kl(view.student_attacked, view.teacher_attacked, self.temperature)
            terms["kl_adversarial"] = Term(self.alpha, kl)
        return terms
