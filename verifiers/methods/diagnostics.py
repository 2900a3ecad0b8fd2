"""The method ``diagnostics``: compare the input gradients of student and teacher, and attack the student."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.columns import Column, Columns
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.balls import keyed_start
from verifiers.linearity.agreement import attack_agreement, gradient_agreement
from verifiers.linearity.estimates import cross_entropy_of, signed_linearity
from verifiers.methods.base import MethodInfo, Request, stored


@dataclass
class _Certifier:
    """Diagnoses rather than certifies: every row that is asked about is NOT_CERTIFIED."""

    model: nn.Module
    teacher: nn.Module
    request: Request
    classes: int
    batch_size: int = 256

    @property
    def notes(self) -> dict[str, str]:
        return {"classes": str(self.classes)}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        request, eps, norm = self.request, self.request.eps.value, self.request.norm
        steps, restarts = int(request.options["steps"]), int(request.options["restarts"])
        gradients = gradient_agreement(self.model, self.teacher, x, predicted, norm)
        attacks = attack_agreement(
            self.model,
            self.teacher,
            x,
            predicted,
            eps=eps,
            norm=norm,
            steps=steps,
            restarts=restarts,
            seed=request.seed,
            indices=indices,
        )
        start = keyed_start(x, x.new_full(x.shape[:1], eps), norm, request.seed, indices.tolist(), restarts)
        flags = {
            "ce_attack": attacks.ce,
            "margin_attack": attacks.margin,
            "transfers": torch.where(attacks.fooled, attacks.transfers.to(torch.int8), -1),
            "teacher_right": attacks.teacher_right,
            "teacher_right_attacked": attacks.teacher_right_attacked,
        }
        values = {
            "radius": torch.zeros_like(gradients.gap),
            "margin": attacks.student_margin.double(),
            "gradient_gap": gradients.gap,
            "gradient_gap_dual": gradients.gap_dual,
            "gradient_cosine": gradients.cosine,
            "gradient_norm": gradients.norm,
            "margin_gradient_gap": gradients.margin_gap,
            **{name: flag.to(torch.int8) for name, flag in flags.items()},
            "teacher_entropy": attacks.teacher_entropy.double(),
            "ce_llm": signed_linearity(cross_entropy_of(self.model, predicted), x, eps, norm, start).double(),
        }
        return stored(torch.full_like(predicted, Status.NOT_CERTIFIED.value), values)


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Hold both networks' outputs against each other.

    Raises:
        Unsupported: there is no teacher, or its classes differ.
    """
    if request.teacher is None:
        raise Unsupported("diagnostics compare with a teacher: certify with --teacher")
    with torch.no_grad():
        logits, theirs = model(samples), request.teacher(samples)
    if logits.shape != theirs.shape:
        shapes = f"{tuple(logits.shape[1:])} and {tuple(theirs.shape[1:])}"
        raise Unsupported(f"student and teacher differ in their logits: {shapes}")
    return _Certifier(model, request.teacher, request, logits.shape[1])


def _flag(name: str, description: str) -> Column:
    return Column(name, "int8", "", f"1 when {description}, 0 when not, -1 when not asked")


DIAGNOSTICS = MethodInfo(
    name="diagnostics",
    guarantee=Guarantee.ESTIMATE,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="how alike student and teacher are in their input gradients, and what attacks on the student do to both",
    paper="Shao et al., arXiv 2110.12072; gaps and cosines: arXiv 2312.03286; attacks: Madry et al., arXiv 1706.06083",
    cost="4 x steps x restarts forward passes of the student, a few of the teacher",
    prepare=_prepare,
    needs_teacher=True,
    columns=(
        Column(
            "gradient_gap", "float64", "nats per pixel", "l2 norm of the cross-entropy's gradient, student - teacher"
        ),
        Column("gradient_gap_dual", "float64", "nats per pixel", "the same in the dual norm of the ball's"),
        Column("gradient_cosine", "float64", "", "cosine of the two gradients; 0 where one of them vanishes"),
        Column("gradient_norm", "float64", "nats per pixel", "l2 norm of the student's gradient of the cross-entropy"),
        Column(
            "margin_gradient_gap",
            "float64",
            "logits per pixel",
            "dual norm of the gradient of the margin to the student's runner-up, student - teacher",
        ),
        _flag("ce_attack", "PGD on the cross-entropy makes the student wrong within eps"),
        _flag("margin_attack", "PGD on the margin makes the student wrong within eps"),
        _flag("transfers", "the teacher is wrong too at the student's adversarial example; asked where one was found"),
        Column(
            "teacher_entropy",
            "float64",
            "nats",
            "entropy of the teacher's softmax at the point of smallest student margin that the attacks found",
        ),
        _flag("teacher_right", "the teacher is right at the image"),
        _flag("teacher_right_attacked", "the teacher is right at the point of smallest student margin"),
        Column(
            "ce_llm", "float64", "nats", "found: local linearity of the student, signed, by 50 sign steps of 0.1; linf"
        ),
    ),
    options={"steps": 30, "restarts": 4},
)
