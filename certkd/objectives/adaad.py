"""AdaAD, which attacks the difference of student and teacher, and adversarial function matching, with augmentation."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kd import kl_each
from certkd.objectives.robust import RobustDistillation, View, divergence_from_teacher
from verifiers.core.settings import Number, Share
from verifiers.geometry.ascent import PerSampleLoss
from verifiers.geometry.balls import per_sample


class AdaAd(RobustDistillation):
    """lambda_adversarial KL(t(x') || s(x')) + (1 - lambda_adversarial) KL(t(x) || s(x)), x' raises KL(t(x') || s(x')).

    The attack differentiates through teacher and student. ``trust`` beta above 0 (AdaIAD) adds the term
    mean_i (1 - w_i) KL(s(x) || s(x')), w_i = p_t(y | x')^beta.
    """

    kind: Literal["adaad"] = "adaad"
    lambda_adversarial: Share = 1.0
    trust: Number = 0.0
    summary: ClassVar[str] = "the teacher's outputs where student and teacher differ most in the ball"
    paper: ClassVar[str] = "Huang et al., CVPR 2023"

    def inner(self, batch: Batch) -> PerSampleLoss | None:
        return divergence_from_teacher(batch)

    def outer(self, view: View) -> Terms:
        kl = kl_each(view.student_attacked, view.teacher_attacked).mean()
        terms = {"kl_adversarial": Term(self.lambda_adversarial, kl)}
        if self.lambda_adversarial < 1:
            clean = kl_each(view.student_clean, view.teacher_clean).mean()
            terms["kl_clean"] = Term(1 - self.lambda_adversarial, clean)
        if self.trust > 0:
            terms["kl_self"] = Term(1.0, ((1 - view.trust(self.trust)) * view.self_kl()).mean())
        return terms


class AdvFunMatch(RobustDistillation):
    """KL(t(x') || s(x')), x' raises KL(t(x') || s(x')) around mixed images x = u x_i + (1 - u) x_j; labels are not
    used.

    j is a random order of the batch and u is uniform in [0, 1] for each image. Only the paper's abstract was read: it
    requires strong augmentation without details. Mixing is that of function matching (Beyer et al., arXiv 2106.05237).
    ``mix: false`` leaves the images unchanged.
    """

    kind: Literal["advfunmatch"] = "advfunmatch"
    mix: bool = True
    summary: ClassVar[str] = "adaad on mixed images, without labels"
    paper: ClassVar[str] = "Wu et al., arXiv 2305.14700 (abstract)"

    def terms(self, batch: Batch) -> Terms:
        return super().terms(self._mixed(batch) if self.mix else batch)

    def inner(self, batch: Batch) -> PerSampleLoss | None:
        return divergence_from_teacher(batch)

    def outer(self, view: View) -> Terms:
        return {"kl_adversarial": Term(1.0, kl_each(view.student_attacked, view.teacher_attacked).mean())}

    @staticmethod
    def _mixed(batch: Batch) -> Batch:
        order = torch.randperm(len(batch.x), generator=batch.generator).to(batch.x.device)
        share = per_sample((1 + batch.uniform(batch.x.flatten(1)[:, 0])) / 2, batch.x)
        return replace(batch, x=share * batch.x + (1 - share) * batch.x[order])
