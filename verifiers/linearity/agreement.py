"""Estimate how well a student matches its teacher locally: compare input gradients, and attack the student.

These are estimates; none of them proves anything. A smaller gap and a cosine nearer to 1 mean that more of the
teacher's local behaviour was distilled. But alignment also shrinks the gradients of the cross-entropy, and an attack
that follows them can fail for that reason alone. A second attack therefore follows the margin, and both are reported.

Source: gap and cosine of gradients as in Lee et al., arXiv 2312.03286; attacks: Madry et al., arXiv 1706.06083.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.attack import Attack
from verifiers.geometry.balls import DUAL, Balls, keyed_start, norms, reachable
from verifiers.geometry.margins import margins
from verifiers.linearity.estimates import cross_entropy_of, runner_up
from verifiers.runtime.modes import eval_mode


class GradientAgreement(NamedTuple):
    """A comparison of both networks' input gradients at the images, one value per sample, in float64.

    Attributes:
        gap: ||grad CE_s - grad CE_t||_2, in nats per pixel.
        gap_dual: the same in the dual norm of the threat.
        cosine: the cosine of the angle between the two; 0 if one of them vanishes.
        norm: ||grad CE_s||_2, in nats per pixel.
        margin_gap: dual norm of grad m_s - grad m_t for the margin m to the student's runner-up; logits per pixel.
    """

    gap: Float[Tensor, " batch"]
    gap_dual: Float[Tensor, " batch"]
    cosine: Float[Tensor, " batch"]
    norm: Float[Tensor, " batch"]
    margin_gap: Float[Tensor, " batch"]


class AttackAgreement(NamedTuple):
    """The effect of attacks on the student on both networks, one value per sample.

    Attributes:
        ce: the attack on the cross-entropy found a point of the ball that the student misclassifies.
        margin: the attack on the margin did.
        point: the point of smallest student margin that they found; the image itself if none is smaller.
        student_margin: the student's margin there, in logits; negative if an attack succeeded.
        teacher_right: the teacher is right at the image.
        teacher_right_attacked: the teacher is right at the point.
        teacher_entropy: entropy of the teacher's softmax at the point, in nats.
    """

    ce: Bool[Tensor, " batch"]
    margin: Bool[Tensor, " batch"]
    point: Float[Tensor, "batch *shape"]
    student_margin: Float[Tensor, " batch"]
    teacher_right: Bool[Tensor, " batch"]
    teacher_right_attacked: Bool[Tensor, " batch"]
    teacher_entropy: Float[Tensor, " batch"]

    @property
    def fooled(self) -> Bool[Tensor, " batch"]:
        """True where an attack on the student succeeded."""
        return self.ce | self.margin

    @property
    def transfers(self) -> Bool[Tensor, " batch"]:
        """True where an attack succeeded and the teacher is wrong at the same point."""
        return self.fooled & ~self.teacher_right_attacked


def gradient_agreement(
    student: nn.Module,
    teacher: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    norm: Norm,
) -> GradientAgreement:
    """Compare the input gradients of two networks at images in [0, 1]; both run in eval mode and are then restored.

    Args:
        student, teacher: map images to logits of the same classes.
        y: true labels.
        norm: norm of the threat, whose dual measures gradients.

    Raises:
        InputError: the networks have different classes.
    """
    with eval_mode(student), eval_mode(teacher):
        with torch.no_grad():
            logits = student(x)
            _check_classes(logits, teacher(x))
        rivals = runner_up(logits, y)
        (loss, margin), (its_loss, its_margin) = (_gradients(model, x, y, rivals) for model in (student, teacher))
    return GradientAgreement(
        gap=torch.linalg.vector_norm(loss - its_loss, dim=1),
        gap_dual=torch.linalg.vector_norm(loss - its_loss, DUAL[norm], dim=1),
        cosine=_cosine(loss, its_loss),
        norm=torch.linalg.vector_norm(loss, dim=1),
        margin_gap=torch.linalg.vector_norm(margin - its_margin, DUAL[norm], dim=1),
    )


def _gradients(
    model: nn.Module, x: Tensor, y: Tensor, rivals: Tensor
) -> tuple[Float[Tensor, "batch pixels"], Float[Tensor, "batch pixels"]]:
    """Compute the gradients of cross-entropy and margin to a rival; in float64, to keep the squares of small values."""
    at = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(at)
        loss = F.cross_entropy(logits, y, reduction="sum")
        margin = (logits.gather(1, y[:, None]) - logits.gather(1, rivals[:, None])).sum()
        (of_loss,) = torch.autograd.grad(loss, at, retain_graph=True)
        (of_margin,) = torch.autograd.grad(margin, at)
    return of_loss.double().flatten(1), of_margin.double().flatten(1)


def _cosine(a: Float[Tensor, "batch pixels"], b: Float[Tensor, "batch pixels"]) -> Float[Tensor, " batch"]:
    lengths = torch.linalg.vector_norm(a, dim=1), torch.linalg.vector_norm(b, dim=1)
    lost = (lengths[0] == 0) | (lengths[1] == 0)
    ours, theirs = (v / length.masked_fill(lost, 1.0)[:, None] for v, length in zip((a, b), lengths, strict=True))
    return (ours * theirs).sum(1).clamp(-1.0, 1.0).masked_fill(lost, 0.0)


def attack_agreement(
    student: nn.Module,
    teacher: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    attack: Attack,
    indices: Int[Tensor, " batch"] | None = None,
) -> AttackAgreement:
    """Attack the student twice and evaluate the teacher at the point found; both run in eval mode, then are restored.

    One attack raises the cross-entropy, the other lowers the margin. Both start from the same points: the image, then
    random ones keyed by seed and sample index. An image that the student misclassifies counts as a success of both.

    Args:
        student, teacher: map images in [0, 1] to logits of the same classes.
        y: true labels.
        attack: radius, norm and seed, and the steps and starting points of each attack.
        indices: indices of the samples; 0, 1, ... when None.

    Raises:
        InputError: the networks have different classes, eps is not positive, or steps or restarts are below 1.
    """
    _check_attack(attack)
    numbers = range(len(x)) if indices is None else indices.tolist()
    radii = x.new_full(x.shape[:1], attack.eps)
    random = (keyed_start(x, radii, attack.norm, attack.seed, numbers, again) for again in range(1, attack.restarts))
    starts = [None, *random]
    with eval_mode(student), eval_mode(teacher):
        with torch.no_grad():
            before = teacher(x)
            _check_classes(student(x), before)
        search = _Ascents(student, x, y, attack, starts)
        loss, low = search.weakest(cross_entropy_of(student, y)), search.weakest(lambda z: -margins(student(z), y))
        point, lower = loss.point.clone(), low.margin <= loss.margin
        point[lower] = low.point[lower]
        with torch.no_grad():
            after = teacher(point)
    return AttackAgreement(
        ce=loss.margin < 0,
        margin=low.margin < 0,
        point=point,
        student_margin=torch.minimum(low.margin, loss.margin),
        teacher_right=before.argmax(1) == y,
        teacher_right_attacked=after.argmax(1) == y,
        teacher_entropy=torch.special.entr(after.softmax(1)).sum(1),
    )


class _Found(NamedTuple):
    point: Float[Tensor, "batch *shape"]
    margin: Float[Tensor, " batch"]


class _Ascents(NamedTuple):
    """Take gradient steps within the ball from given perturbations."""

    model: nn.Module
    x: Tensor
    y: Tensor
    attack: Attack
    starts: Sequence[Tensor | None]

    def weakest(self, objective: PerSampleLoss) -> _Found:
        """Return the point of smallest margin found by raising the objective; the image if no margin is smaller."""
        x, best, attack = self.x, self.x.clone(), self.attack
        with torch.no_grad():
            least = margins(self.model(x), self.y)
        reach = x.new_full((len(x),), reachable(attack.eps, attack.norm, x))
        for start in self.starts:
            point = ascend(objective, Balls(x, reach, attack.norm), steps=attack.steps, start=start)
            with torch.no_grad():
                margin = margins(self.model(point), self.y)
            better = (margin < least) & (norms(point.double() - x.double(), attack.norm) <= attack.eps)
            best[better], least[better] = point[better], margin[better]
        return _Found(best, least)


def _check_attack(attack: Attack) -> None:
    if not 0 < attack.eps < math.inf:
        raise InputError(f"eps must be positive and finite, got {attack.eps}: give a radius in pixel units, like 0.03")
    for name, value in (("steps", attack.steps), ("restarts", attack.restarts)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _check_classes(logits: Tensor, teacher: Tensor) -> None:
    if logits.shape != teacher.shape:
        raise InputError(
            f"the student's logits have shape {tuple(logits.shape)}, the teacher's {tuple(teacher.shape)}: "
            "give a teacher of the same classes"
        )
