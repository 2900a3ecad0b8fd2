"""Certified distillation: KDIGA plus a proved bound of the student's margin deficit to the teacher."""

from typing import ClassVar, Literal

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kdiga import Kdiga
from verifiers.bound_propagation import ball, deficits
from verifiers.core.settings import BoundMethod, Number, Radius, Share


class KdigaCertified(Kdiga):
    """kdiga + lambda_deficit mean_i max_j [upper bound over the ball of (t_y - t_j) - (s_y - s_j)]_+.

    The ball is linf of eps within the image box. The bound is by IBP or by CROWN-IBP; the latter bounds both networks
    in one graph, where their linear functions cancel if they agree. eps grows over the first share ``eps_ramp``.
    Bounds of ReLU networks are not exact, so a network has a deficit above 0 to itself.
    """

    kind: Literal["kdiga_certified"] = "kdiga_certified"  # type: ignore[assignment]
    eps: Radius
    lambda_deficit: Number = 0.01
    bound: BoundMethod = "crown-ibp"
    eps_ramp: Share = 0.5
    summary: ClassVar[str] = "kdiga and a certified bound of the margin deficit to the teacher over the ball"

    def _used(self) -> dict[str, bool]:
        return {**super()._used(), "eps": True, "eps_ramp": True}

    def terms(self, batch: Batch) -> Terms:
        terms = super().terms(batch)
        if self.lambda_deficit > 0:
            box = ball(batch.x, self.eps * batch.risen(self.eps_ramp))
            assert batch.teacher is not None
            behind = deficits(batch.student, batch.teacher, box, batch.y, self.bound)
            terms["deficit"] = Term(self.lambda_deficit, behind.amax(1).clamp_min(0).mean())
        return terms
