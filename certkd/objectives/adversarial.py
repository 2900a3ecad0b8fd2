"""Adversarial training: cross-entropy on PGD examples, the usual way to train a robust teacher."""

from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.attacks import Pgd
from certkd.objectives.base import Batch, Objective, Term, Terms
from verifiers.core.quantities import Norm
from verifiers.core.settings import Count, Positive, Radius, Share
from verifiers.geometry.ascent import PerSampleLoss


class Attacked(Objective):
    """Settings of an attack in a training step: eps and ``step_size`` in pixel units, by default 2.5 eps / steps.

    Both grow from 0 over the first share ``ramp`` of the training: starting from random weights with a large eps can
    end in a constant prediction. Every attack starts at a random point of the ball, stays in [0, 1], and attacks the
    student in eval mode.
    """

    eps: Radius
    norm: Norm = Norm.LINF
    steps: Count = 10
    step_size: Positive | None = None
    ramp: Share = 0.0

    def grown(self, batch: Batch) -> float:
        """Return eps at this point of the training."""
        return self.eps * batch.risen(self.ramp)

    def adversarial(self, batch: Batch, loss: PerSampleLoss | None = None) -> Float[Tensor, "batch *shape"]:
        """Find images in the ball that raise a loss per sample; the cross-entropy when None."""
        step = None if self.step_size is None else self.step_size * batch.risen(self.ramp)
        attack = Pgd(eps=self.grown(batch), norm=self.norm, steps=self.steps, step_size=step)
        if loss is None:
            return attack.fool(batch.student, batch.x, batch.y, batch.generator)
        return attack.raise_loss(batch.student, loss, batch.x, batch.generator)


class Adversarial(Attacked):
    """CE(f(x'), y) with x' from PGD on the cross-entropy."""

    kind: Literal["adversarial"] = "adversarial"
    summary: ClassVar[str] = "cross-entropy on PGD examples (robust teacher)"
    paper: ClassVar[str] = "Madry et al., arXiv 1706.06083"

    def terms(self, batch: Batch) -> Terms:
        return {"ce_adversarial": Term(1.0, F.cross_entropy(batch.student(self.adversarial(batch)), batch.y))}
