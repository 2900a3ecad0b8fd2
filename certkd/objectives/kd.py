"""Knowledge distillation: match the teacher's softened outputs, on clean images or under noise."""

from typing import ClassVar, Literal

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.base import Batch, Objective, Term, Terms
from verifiers.core.settings import Number, Positive


def _divergence(student: Tensor, teacher: Tensor, temperature: float) -> Float[Tensor, "batch classes"]:
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True)


def kl_each(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float = 1.0
) -> Float[Tensor, " batch"]:
    """Compute T^2 KL(softmax(teacher / T) || softmax(student / T)) of each sample, summed over classes."""
    return temperature**2 * _divergence(student, teacher, temperature).sum(dim=1)


def softened_kl(
    student: Float[Tensor, "batch classes"],
    teacher: Float[Tensor, "batch classes"],
    temperature: float,
    keep: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Average ``kl_each`` over the batch; samples that are not kept count as 0."""
    divergence = _divergence(student, teacher, temperature)
    if keep is not None:
        divergence = divergence * keep[:, None]
    return temperature**2 * (divergence.sum() / len(divergence))


class Kd(Objective):
    """lambda_ce CE(s(x), y) + lambda_kl T^2 KL(t(x) || s(x)).

    With sigma > 0, x means x + n, with n drawn from N(0, sigma^2 I) in each batch, in pixel units, the same for both.

    Example:
        >>> Kd(temperature=4, lambda_kl=0.9, lambda_ce=0.1)
    """

    kind: Literal["kd"] = "kd"
    lambda_ce: Number = 0.5
    lambda_kl: Number = 0.5
    temperature: Positive = 1.0
    sigma: Number = 0.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "cross-entropy and the teacher's softened outputs"
    paper: ClassVar[str] = "Hinton et al., arXiv 1503.02531"

    def terms(self, batch: Batch) -> Terms:
        logits, target = batch.outputs(self.sigma)
        terms = {"ce": Term(self.lambda_ce, F.cross_entropy(logits, batch.y))}
        if self.lambda_kl > 0:
            terms["kl"] = Term(self.lambda_kl, softened_kl(logits, target, self.temperature))
        return terms
