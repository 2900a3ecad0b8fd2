"""SAAD: adversarial distillation of the samples whose adversarial examples also trouble the teacher."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.gradients import input_gradient
from certkd.objectives.kd import kl_each
from certkd.objectives.kdiga import difference_kl
from certkd.objectives.robust import View
from verifiers.core.settings import Number
from verifiers.geometry.ascent import PerSampleLoss


class Saad(Attacked):
    """mean_i w_i [KL(t(x'_i) || s(x'_i)) + lambda_igdm p G_i] + lambda_clean mean_i (1 - w_i) KL(t(x_i) || s(x_i)).

    w_i is the entropy of t(x'_i) over log C, a constant: near 0 where the teacher is sure of an example that was made
    against the student. G is IGDM's divergence of output differences, p the share of the training that is done. x'
    raises KL(t*(z) || s(z)), where t* are the teacher's logits at x with that of y moved by its gradient: one teacher
    pass per attack. ``lambda_clean`` above 0 is SAAD-C. (The release takes Renyi's entropy less the least of the batch,
    times 5, and averages weights from epoch 95: set ``average``.)
    """

    kind: Literal["saad"] = "saad"
    lambda_igdm: Number = 1.0
    lambda_clean: Number = 0.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "adaad and IGDM, weighted by the teacher's entropy on the adversarial example"
    paper: ClassVar[str] = "Lee and Chung, arXiv 2512.10275"

    def terms(self, batch: Batch) -> Terms:
        view = View(batch, self.adversarial(batch, linearised(batch)), exact=self.lambda_igdm > 0)
        weight = entropy_share(view.teacher_attacked)
        kl = kl_each(view.student_attacked, view.teacher_attacked)
        terms = {"kl_adversarial": Term(1.0, (weight * kl).mean())}
        if self.lambda_clean > 0:
            clean = (1 - weight) * kl_each(view.student_clean, view.teacher_clean)
            terms["kl_clean"] = Term(self.lambda_clean, clean.mean())
        if self.lambda_igdm > 0:
            gaps = difference_kl(batch, batch.x, view.adversarial, view.student_attacked, view.teacher_attacked)
            terms["igdm"] = Term(self.lambda_igdm * batch.progress, (weight * gaps).mean())
        return terms


def linearised(batch: Batch) -> PerSampleLoss:
    """Return KL(t*(z) || s(z)) as a function of z, with t* linear in z: one pass of the teacher."""
    assert batch.teacher is not None
    x, own = batch.x.detach().requires_grad_(True), batch.y[:, None]
    with torch.enable_grad():
        logits = batch.teacher(x)
        slope = input_gradient(logits.gather(1, own)[:, 0], x, create_graph=False).flatten(1)
    fixed, start = logits.detach(), batch.x.flatten(1)

    def loss(z: Tensor) -> Tensor:
        moved = ((z.flatten(1) - start) * slope).sum(1, keepdim=True)
        return kl_each(batch.student(z), fixed.scatter_add(1, own, moved))

    return loss


def entropy_share(logits: Tensor) -> Tensor:
    """Compute the entropy of each sample's class probabilities over its largest value, log C."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1) / math.log(logits.shape[1])
