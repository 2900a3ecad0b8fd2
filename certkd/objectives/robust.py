"""The base of adversarial distillation: clean and adversarial images through student and teacher."""

from abc import abstractmethod
from functools import cached_property
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.gradients import full_precision
from certkd.objectives.kd import kl_each
from certkd.objectives.kdiga import difference_kl
from verifiers.core.settings import Number
from verifiers.geometry.ascent import PerSampleLoss


class View:
    """Logits of clean and adversarial images, each computed on first use; the teacher's are constants.

    ``exact`` computes the adversarial ones in full precision, because their differences are compared.
    """

    def __init__(self, batch: Batch, adversarial: Float[Tensor, "batch *shape"], exact: bool) -> None:
        self.batch, self.adversarial, self.exact = batch, adversarial, exact

    @cached_property
    def student_clean(self) -> Float[Tensor, "batch classes"]:
        """s(x)."""
        return self.batch.student(self.batch.x)

    @cached_property
    def student_attacked(self) -> Float[Tensor, "batch classes"]:
        """s(x')."""
        with full_precision(self.adversarial.device, self.exact):
            return self.batch.student(self.adversarial)

    @cached_property
    def teacher_clean(self) -> Float[Tensor, "batch classes"]:
        """t(x)."""
        return self.batch.constant(self.batch.x)

    @cached_property
    def teacher_attacked(self) -> Float[Tensor, "batch classes"]:
        """t(x')."""
        with full_precision(self.adversarial.device, self.exact):
            return self.batch.constant(self.adversarial)

    def ce_clean(self) -> Float[Tensor, ""]:
        """Compute CE(s(x), y)."""
        return F.cross_entropy(self.student_clean, self.batch.y)

    def self_kl(self) -> Float[Tensor, " batch"]:
        """Compute KL(s(x) || s(x')) of each sample; both sides have gradients."""
        return kl_each(self.student_attacked, self.student_clean)

    def trust(self, power: float) -> Float[Tensor, " batch"]:
        """Compute a power of the teacher's probability of the true label at x'."""
        probability = self.teacher_attacked.softmax(1).gather(1, self.batch.y[:, None])[:, 0]
        return probability**power


class RobustDistillation(Attacked):
    """Settings of an adversarial distillation with loss L. With ``lambda_igdm`` above 0 the loss is

    L + lambda_igdm p KL(softmax(t(x + d) - t(x - d)) || softmax(s(x + d) - s(x - d))), with d = x' - x and p the share
    of the training's steps that are done (the paper's p grows by epoch). Source: Lee et al., arXiv 2312.03286 (IGDM).
    """

    lambda_igdm: Number = 0.0
    needs_teacher: ClassVar[bool] = True

    def terms(self, batch: Batch) -> Terms:
        view = View(batch, self.adversarial(batch, self.inner(batch)), exact=self.lambda_igdm > 0)
        terms = self.outer(view)
        if self.lambda_igdm > 0:
            gaps = difference_kl(batch, batch.x, view.adversarial, view.student_attacked, view.teacher_attacked)
            terms["igdm"] = Term(self.lambda_igdm * batch.progress, gaps.mean())
        return terms

    def inner(self, batch: Batch) -> PerSampleLoss | None:
        """Return the loss that the attack raises; the cross-entropy when None."""
        return None

    @abstractmethod
    def outer(self, view: View) -> Terms:
        """Return the terms to minimise, without IGDM's."""


def divergence_from_teacher(batch: Batch) -> PerSampleLoss:
    """Return KL(t(z) || s(z)) as a function of z; its gradient goes through both networks."""
    teacher = batch.teacher
    assert teacher is not None
    return lambda z: kl_each(batch.student(z), teacher(z))


def divergence_from_clean_teacher(batch: Batch) -> PerSampleLoss:
    """Return KL(t(x) || s(z)) as a function of z, with the teacher at the clean image."""
    target = batch.constant(batch.x)
    return lambda z: kl_each(batch.student(z), target)
