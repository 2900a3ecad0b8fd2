"""Squeeze training: the two points of the ball that differ most are brought together."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.attacks import Pgd
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kd import kl_each
from verifiers.core.quantities import Norm
from verifiers.core.settings import Number


class Squeeze(Attacked):
    """CE(s(x), y) + beta mean_i [KL(u_i || v_i) + KL(v_i || u_i)] / 2.

    Two points of the linf ball climb this symmetric divergence of each other's outputs. Of x and the two, u and v are
    the outputs with the least and the most probability of y: an adversarial and a collaborative example. Both sides
    have gradients. (The release holds one side of each KL constant, starts at x + 0.001 N(0, I), and lets x take the
    place of a point during the attack.)
    """

    kind: Literal["squeeze"] = "squeeze"
    norm: Literal[Norm.LINF] = Norm.LINF
    beta: Number = 6.0
    summary: ClassVar[str] = "cross-entropy, and equal outputs at the two most different points of the ball"
    paper: ClassVar[str] = "Li et al., arXiv 2205.11156"

    def terms(self, batch: Batch) -> Terms:
        clean, *others = (batch.student(x) for x in (batch.x, *self._pair(batch).unbind(1)))
        logits = torch.stack([clean, *others])
        chosen = batch.y.expand(3, -1)[..., None]
        confidence = logits.log_softmax(2).gather(2, chosen)[..., 0]
        rows = torch.arange(len(batch.y), device=logits.device)
        least, most = logits[confidence.argmin(0), rows], logits[confidence.argmax(0), rows]
        return {
            "ce": Term(1.0, F.cross_entropy(clean, batch.y)),
            "squeeze": Term(self.beta, symmetric_kl(least, most).mean()),
        }

    def _pair(self, batch: Batch) -> Float[Tensor, "batch two *shape"]:
        """Find the two points of each image."""

        def loss(z: Tensor) -> Tensor:
            return symmetric_kl(*(batch.student(point) for point in z.unbind(1)))

        step = None if self.step_size is None else self.step_size * batch.risen(self.ramp)
        attack = Pgd(eps=self.grown(batch), norm=self.norm, steps=self.steps, step_size=step)
        return attack.raise_loss(batch.student, loss, torch.stack([batch.x, batch.x], 1), batch.generator)


def symmetric_kl(one: Float[Tensor, "batch classes"], other: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Compute half of KL(one || other) + KL(other || one) of each sample."""
    return (kl_each(one, other) + kl_each(other, one)) / 2
