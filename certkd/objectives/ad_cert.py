"""AD-CERT: the teacher's outputs on adversarial examples, and an interval bound of the student."""

from typing import ClassVar, Literal

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.certified import Expressive
from certkd.objectives.kd import softened_kl
from verifiers.bound_propagation import ball, lower_margins, robust_cross_entropy
from verifiers.core.settings import Positive, Share


class AdCert(Expressive):
    """alpha CE(worst logits of the student over the ball by IBP, y) + (1 - alpha) T^2 KL(t(x') || s(x')).

    x' is from PGD on CE(s(x'), y). Only the paper's abstract was read: it joins "adversarial distillation over the
    logit space from an empirically robust teacher" to an IBP upper bound, as mtl_ibp joins adversarial training to
    one. That the teacher sees x', the temperature and the weights are ours. eps grows from 0 over the first share
    ``ramp`` of the training.
    """

    kind: Literal["ad_cert"] = "ad_cert"
    alpha: Share = 0.1
    temperature: Positive = 1.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "a robust teacher's outputs on PGD examples and an interval bound (certified student)"
    paper: ClassVar[str] = "AD-CERT, arXiv 2606.31653 (abstract)"

    def terms(self, batch: Batch) -> Terms:
        adversarial, box = self.adversarial(batch), ball(batch.x, self.grown(batch))
        margins = lower_margins(batch.student, box, batch.y, "ibp")
        kl = softened_kl(batch.student(adversarial), batch.constant(adversarial), self.temperature)
        return {
            "ce_certified": Term(self.alpha, robust_cross_entropy(margins)),
            "kl_adversarial": Term(1 - self.alpha, kl),
            **self.warmup(batch, box),
        }
