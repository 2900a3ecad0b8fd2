"""Certified distillation: KDIGA plus a proved bound of the student's margin deficit to the teacher."""

from typing import ClassVar, Literal

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kdiga import Kdiga
from verifiers.bound_propagation import ball, deficits, lower_margins, robust_cross_entropy
from verifiers.core.settings import BoundMethod, Number, Radius, Share


class KdigaCertified(Kdiga):
    """kdiga + lambda_deficit mean_i max_j [upper bound over the ball of (t_y - t_j) - (s_y - s_j)]_+
    + lambda_certified CE(worst logits of the student over the ball by IBP, y).

    The ball is linf of eps within the image box. The bound is by IBP or by CROWN-IBP; the latter bounds both networks
    in one graph, where their linear functions cancel if they agree. eps grows over the first share ``eps_ramp``.
    Bounds of ReLU networks are not exact, so a network has a deficit above 0 to itself. The last term is that of
    certified training, with KDIGA in the place of the adversarial loss of mtl_ibp: it needs no attack.
    """

    kind: Literal["kdiga_certified"] = "kdiga_certified"  # type: ignore[assignment]
    eps: Radius
    lambda_deficit: Number = 0.01
    lambda_certified: Number = 0.0
    bound: BoundMethod = "crown-ibp"
    eps_ramp: Share = 0.5
    summary: ClassVar[str] = "kdiga and a certified bound of the margin deficit to the teacher over the ball"

    def _used(self) -> dict[str, bool]:
        return {**super()._used(), "eps": True, "eps_ramp": True}

    def terms(self, batch: Batch) -> Terms:
        terms, box = super().terms(batch), ball(batch.x, self.eps * batch.risen(self.eps_ramp))
        if self.lambda_deficit > 0:
            assert batch.teacher is not None
            behind = deficits(batch.student, batch.teacher, box, batch.y, self.bound)
            terms["deficit"] = Term(self.lambda_deficit, behind.amax(1).clamp_min(0).mean())
        if self.lambda_certified > 0:
            worst = lower_margins(batch.student, box, batch.y, "ibp")
            terms["ce_certified"] = Term(self.lambda_certified, robust_cross_entropy(worst))
        return terms
