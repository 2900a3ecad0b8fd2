"""CC-Dist: a combination of adversarial and interval outputs, and of features, towards a robust teacher's."""

from typing import ClassVar, Literal

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.certified import Expressive, margins_of
from certkd.objectives.features import features_of_both
from verifiers.bound_propagation import ball, margins_and_features, robust_cross_entropy
from verifiers.core.settings import Number, Share


class CcDist(Expressive):
    """CE(alpha worst logits + (1 - alpha) s(x'), y) + lambda_features mean_ik (alpha D_ik + (1 - alpha) d_ik)^2.

    The first term is cc_ibp: worst logits over the ball by IBP, x' from PGD on CE(s(x'), y). Of feature k of image i,
    d = |h_s(x') - h_t(x)| and D is the largest |h_s - h_t(x)| that IBP allows over the ball. Features are the input of
    the last layer; student and teacher have equally many. Only the paper's abstract was read: it adds "a versatile
    feature-space distillation objective" from an adversarially trained teacher to expressive losses. This form of it is
    ours. eps grows from 0 over the first share ``ramp`` of the training.
    """

    kind: Literal["cc_dist"] = "cc_dist"
    alpha: Share = 0.1
    lambda_features: Number = 1.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "a robust teacher's features, adversarial and interval outputs (certified student)"
    paper: ClassVar[str] = "De Palma, arXiv 2602.02626 (abstract)"

    def terms(self, batch: Batch) -> Terms:
        adversarial, box = self.adversarial(batch), ball(batch.x, self.grown(batch))
        worst, ends = margins_and_features(batch.student, box, batch.y)
        logits, features, target = features_of_both(batch, adversarial, batch.x)
        goal = target.flatten(1)
        reached = (features.flatten(1) - goal).abs()
        allowed = (goal - ends[0].flatten(1)).abs().maximum((ends[1].flatten(1) - goal).abs())
        mixed = self.alpha * worst + (1 - self.alpha) * margins_of(logits, batch.y)
        gap = (self.alpha * allowed + (1 - self.alpha) * reached).square().mean()
        return {
            "ce_combined": Term(1.0, robust_cross_entropy(mixed)),
            "features": Term(self.lambda_features, gap),
            **self.warmup(batch, box),
        }
