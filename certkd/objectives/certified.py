"""Certified training of teachers and baselines: cross-entropy of the worst logits that sound bounds allow."""

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Objective, Term, Terms
from certkd.objectives.warmup import warmup_terms
from verifiers.bound_propagation import Box, ball, blended_margins, lower_margins, robust_cross_entropy
from verifiers.core.quantities import Norm
from verifiers.core.settings import BoundMethod, Number, Radius, Share


class Ibp(Objective):
    """kappa CE(f(x), y) + (1 - kappa) CE(worst logits over the linf ball of eps within the image box, y).

    Interval arithmetic bounds the worst logits (``method: ibp``). With ``crown-ibp`` their margins are b CROWN-IBP +
    (1 - b) IBP, and b falls from 1 to 0 while eps grows. eps grows from 0 over the first share ``ramp`` of the
    training. (The published schedules also lower kappa from 1; here it is constant.) Batch normalisation is bounded
    with its running statistics.

    ``lambda_warmup`` adds the regulariser of Shi et al. (arXiv 2103.17268, there 0.5) while eps grows:
    lambda_warmup (1 - share of eps) (tightness of the intervals + balance of the activations).
    """

    kind: Literal["ibp"] = "ibp"
    eps: Radius
    kappa: Share = 0.5
    method: BoundMethod = "ibp"
    ramp: Share = 0.5
    lambda_warmup: Number = 0.0
    summary: ClassVar[str] = "cross-entropy of the worst logits by interval (or CROWN-IBP) bounds (certified teacher)"
    paper: ClassVar[str] = "Gowal et al., arXiv 1810.12715; Zhang et al., arXiv 1906.06316"

    @model_validator(mode="after")
    def _crown_needs_a_ramp(self) -> "Ibp":
        if self.method == "crown-ibp" and self.ramp == 0:
            raise ValueError("crown-ibp counts while eps grows: give a ramp above 0, or method ibp")
        return self

    def terms(self, batch: Batch) -> Terms:
        risen = batch.risen(self.ramp)
        box, left = ball(batch.x, self.eps * risen), 1 - risen
        terms = {"ce": Term(self.kappa, F.cross_entropy(batch.student(batch.x), batch.y))}
        if self.kappa < 1:
            margins = blended_margins(batch.student, box, batch.y, left if self.method == "crown-ibp" else 0.0)
            terms["ce_certified"] = Term(1 - self.kappa, robust_cross_entropy(margins))
        return terms | warmup_terms(batch.student, box, self.lambda_warmup * left)


class Expressive(Attacked):
    """Settings that adversarial and interval losses share: the linf norm and a growing eps.

    ``lambda_warmup`` adds the regulariser of Shi et al. (arXiv 2103.17268, there 0.5) while eps grows:
    lambda_warmup (1 - share of eps) (tightness of the intervals + balance of the activations).
    """

    ramp: Share = 0.5
    norm: Literal[Norm.LINF] = Norm.LINF
    lambda_warmup: Number = 0.0

    def warmup(self, batch: Batch, box: Box) -> Terms:
        """Compute the regulariser's terms, while eps grows."""
        return warmup_terms(batch.student, box, self.lambda_warmup * (1 - batch.risen(self.ramp)))


class MtlIbp(Expressive):
    """alpha CE(worst logits over the ball by IBP, y) + (1 - alpha) CE(f(x'), y), x' from PGD on the cross-entropy.

    Small alpha trades certified for standard accuracy. eps grows from 0 over the first share ``ramp`` of the training.
    """

    kind: Literal["mtl_ibp"] = "mtl_ibp"
    alpha: Share = 0.1
    summary: ClassVar[str] = "a convex combination of adversarial and interval losses (certified teacher)"
    paper: ClassVar[str] = "De Palma et al., arXiv 2305.13991"

    def terms(self, batch: Batch) -> Terms:
        adversarial, box = self.adversarial(batch), ball(batch.x, self.grown(batch))
        margins = lower_margins(batch.student, box, batch.y, "ibp")
        return {
            "ce_certified": Term(self.alpha, robust_cross_entropy(margins)),
            "ce_adversarial": Term(1 - self.alpha, F.cross_entropy(batch.student(adversarial), batch.y)),
            **self.warmup(batch, box),
        }


class CcIbp(Expressive):
    """CE(alpha worst logits over the ball by IBP + (1 - alpha) f(x'), y), x' from PGD on the cross-entropy.

    The logits are combined as margins to y. eps grows from 0 over the first share ``ramp`` of the training.
    """

    kind: Literal["cc_ibp"] = "cc_ibp"
    alpha: Share = 0.1
    summary: ClassVar[str] = "the loss of a convex combination of adversarial and interval logits (certified teacher)"
    paper: ClassVar[str] = "De Palma et al., arXiv 2305.13991"

    def terms(self, batch: Batch) -> Terms:
        adversarial, box = self.adversarial(batch), ball(batch.x, self.grown(batch))
        worst = lower_margins(batch.student, box, batch.y, "ibp")
        mixed = self.alpha * worst + (1 - self.alpha) * margins_of(batch.student(adversarial), batch.y)
        return {"ce_combined": Term(1.0, robust_cross_entropy(mixed)), **self.warmup(batch, box)}


class Sabr(Expressive):
    """CE(worst logits over a small box by IBP, y).

    The box has radius share eps and is cut to the image box. Its centre is as near to a PGD example as possible with
    the box inside the ball. eps grows from 0 over the first share ``ramp`` of the training.
    """

    kind: Literal["sabr"] = "sabr"
    share: Share = 0.4
    summary: ClassVar[str] = "interval loss on a small box around an adversarial example (certified teacher)"
    paper: ClassVar[str] = "Mueller et al., arXiv 2210.04871"

    def terms(self, batch: Batch) -> Terms:
        box = small_box(self, batch, self.share)
        worst = lower_margins(batch.student, box, batch.y, "ibp")
        return {"ce_certified": Term(1.0, robust_cross_entropy(worst)), **self.warmup(batch, box)}


def small_box(attack: Attacked, batch: Batch, share: float) -> Box:
    """Compute a box of radius share eps of each image, in the ball and as near to a PGD example as possible."""
    eps = attack.grown(batch)
    small, room = share * eps, (1 - share) * eps
    centre = batch.x + (attack.adversarial(batch) - batch.x).clamp(-room, room)
    return ball(centre, small)


def margins_of(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
    """Compute f_y - f_j for every class j."""
    return logits.gather(1, y[:, None]) - logits
