"""Maximum likelihood distillation: adversarial training on the posterior of a teacher that knows the likelihoods."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.robust import RobustDistillation, View, divergence_from_clean_teacher
from verifiers.core.settings import Share
from verifiers.geometry.ascent import PerSampleLoss


class Mld(RobustDistillation):
    """alpha CE(t(x), s(x')) + (1 - alpha) CE(y, s(x')), x' raises KL(t(x) || s(x')).

    t(x) are class probabilities of the clean sample. In the paper the teacher is not a network but the likelihood of a
    signal under each modulation, with a known channel: labels that are uncertain where the signal is. Any teacher works
    here. Only the paper's abstract was read, so the attack and the mixture with the label are ours.
    """

    kind: Literal["mld"] = "mld"
    alpha: Share = 1.0
    summary: ClassVar[str] = "a teacher's class probabilities as the labels of adversarial examples"
    paper: ClassVar[str] = "Maroto et al., arXiv 2211.00748 (abstract)"

    def inner(self, batch: Batch) -> PerSampleLoss | None:
        return divergence_from_clean_teacher(batch)

    def outer(self, view: View) -> Terms:
        terms = {}
        if self.alpha > 0:
            soft = F.cross_entropy(view.student_attacked, view.teacher_clean.softmax(1))
            terms["ce_likelihood"] = Term(self.alpha, soft)
        if self.alpha < 1:
            hard = F.cross_entropy(view.student_attacked, view.batch.y)
            terms["ce_adversarial"] = Term(1 - self.alpha, hard)
        return terms
