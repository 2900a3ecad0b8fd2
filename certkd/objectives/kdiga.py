"""KDIGA: knowledge distillation with input gradient alignment."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.objectives.base import Batch, Number, Term, Terms, twice_differentiable_attention
from certkd.objectives.kd import Kd

Reduction = Literal["per_sample_mean", "batch_frobenius"]


def input_gradient(
    losses: Float[Tensor, " batch"], x: Float[Tensor, "batch *shape"], *, create_graph: bool
) -> Float[Tensor, "batch *shape"]:
    """Gradient of each sample's own loss in its own pixels (losses are summed, so the batch size does not matter)."""
    (gradient,) = torch.autograd.grad(losses.sum(), x, create_graph=create_graph)
    return gradient


def alignment(
    student: Float[Tensor, "batch *shape"], teacher: Float[Tensor, "batch *shape"], reduction: Reduction
) -> Float[Tensor, ""]:
    """Distance of input gradients of per-sample losses, d_i = g_student,i - g_teacher,i.

    ``per_sample_mean`` is mean_i ||d_i||_2. ``batch_frobenius`` is the reference code's scaling: gradients of the
    batch-mean loss (d_i / B), one Frobenius norm over the batch, divided by B.
    """
    gap = (student - teacher).flatten(1)
    if reduction == "per_sample_mean":
        return torch.linalg.vector_norm(gap, dim=1).mean()
    return torch.linalg.vector_norm(gap) / len(gap) ** 2


class Kdiga(Kd):
    """lambda_ce CE + lambda_kl T^2 KL + lambda_iga ||grad_x CE(s(x), y) - grad_x CE(t(x), y)||_2.

    The gradients are those of the hard-label cross-entropy at temperature 1 in the pixels, the norm is not squared, and
    the teacher's gradient is a constant. One student forward pass serves all three terms (the reference code runs two
    or three and updates the batch statistics in each). The weights are per sample: they mean the same at any batch size
    and number of classes. ``reduction: batch_frobenius`` with lambda_kl divided by the number of classes gives the
    reference code's weights. With sigma > 0 all of it, the gradients too, is taken at the same noisy images, as in kd.

    A large lambda_iga from random weights drives the student to a constant function (its gradient gap is then that of
    the teacher alone); training detects and reports it.
    """

    kind: Literal["kdiga"] = "kdiga"  # type: ignore[assignment]
    lambda_iga: Number = 1.0
    reduction: Reduction = "per_sample_mean"
    summary: ClassVar[str] = "kd and the teacher's input gradients"
    paper: ClassVar[str] = "Shao et al., arXiv 2110.12072"

    def terms(self, batch: Batch) -> Terms:
        if self.lambda_iga == 0:
            return super().terms(batch)
        assert batch.teacher is not None
        x = batch.noisy(self.sigma).detach().requires_grad_(True)
        target, teacher_gradient = teacher_signal(batch.teacher, x, batch.y)
        with twice_differentiable_attention():
            logits = batch.student(x)
            losses = F.cross_entropy(logits, batch.y, reduction="none")
            student_gradient = input_gradient(losses, x, create_graph=True)
        terms = self.weigh(losses.mean(), logits, target)
        terms["iga"] = Term(self.lambda_iga, alignment(student_gradient, teacher_gradient, self.reduction))
        return terms


def teacher_signal(
    teacher: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch *shape"]]:
    """The teacher's logits and its input gradient of the cross-entropy, both constants, from one forward pass."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = teacher(x)
        gradient = input_gradient(F.cross_entropy(logits, y, reduction="none"), x, create_graph=False)
    return logits.detach(), gradient.detach()
