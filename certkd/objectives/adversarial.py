"""Adversarial training: cross-entropy on PGD examples, the usual robust teacher."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.attacks import pgd
from certkd.objectives.base import Batch, Count, Objective, Positive, Term, Terms
from verifiers.certificate import Norm


class Adversarial(Objective):
    """CE(f(x'), y) with x' from PGD with a random start.

    ``step_size`` is in pixel units, 2.5 eps / steps when absent.
    """

    kind: Literal["adversarial"] = "adversarial"
    eps: Positive
    norm: Norm = Norm.LINF
    steps: Count = 10
    step_size: Positive | None = None
    summary: ClassVar[str] = "cross-entropy on PGD examples (robust teacher)"
    paper: ClassVar[str] = "Madry et al., arXiv 1706.06083"

    def terms(self, batch: Batch) -> Terms:
        adversarial = pgd(
            batch.student,
            batch.x,
            batch.y,
            eps=self.eps,
            norm=self.norm,
            steps=self.steps,
            step_size=self.step_size,
            generator=batch.generator,
        )
        return {"ce_adversarial": Term(1.0, F.cross_entropy(batch.student(adversarial), batch.y))}
