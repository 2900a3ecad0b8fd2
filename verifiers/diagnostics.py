"""Does a student resemble its teacher where robustness is decided? Input gradients, and what its attacks do to both.

Estimates, none of which proves anything. The smaller the gap and the nearer the cosine to 1, the more of the teacher's
local behaviour was distilled; but alignment also shrinks the gradients of the cross-entropy, and an attack that follows
those can fail for that reason alone. So a second attack follows the margin, and the two are held against each other.

Source: gap and cosine of gradients as in Lee et al., arXiv 2312.03286; attacks: Madry et al., arXiv 1706.06083.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from verifiers.bound_propagation.native.bounds import DUAL
from verifiers.certificate import (
    Column,
    Columns,
    Guarantee,
    MethodInfo,
    Norm,
    Request,
    Status,
    Unsupported,
    margins,
    stored,
)
from verifiers.errors import InputError
from verifiers.falsify import Objective, ascend, keyed_start, norms, reachable
from verifiers.local_linearity import cross_entropy_of, runner_up, signed_linearity
from verifiers.modes import eval_mode
from verifiers.samples import chance_limit
from verifiers.store import MethodRows

#: An attack on the margin that succeeds on so many more samples than one on the cross-entropy shows masked gradients.
MASKED = 0.05
#: Mean l2 norm of the cross-entropy's gradient that counts as none: over a distance of 1 it changes by so many nats.
FLAT = 0.01
#: Fewer samples say nothing about guessing.
ENOUGH = 20


class GradientAgreement(NamedTuple):
    """Input gradients of both networks at the images, one value per sample, in float64.

    Attributes:
        gap: ||grad CE_s - grad CE_t||_2, nats per pixel.
        gap_dual: the same in the dual norm of the threat.
        cosine: of the angle between the two; 0 where one of them vanishes.
        norm: ||grad CE_s||_2, nats per pixel.
        margin_gap: dual norm of grad m_s - grad m_t, m the margin to the student's runner-up; logits per pixel.
    """

    gap: Float[Tensor, " batch"]
    gap_dual: Float[Tensor, " batch"]
    cosine: Float[Tensor, " batch"]
    norm: Float[Tensor, " batch"]
    margin_gap: Float[Tensor, " batch"]


class AttackAgreement(NamedTuple):
    """What attacks on the student do to both networks, one value per sample.

    Attributes:
        ce: the attack on the cross-entropy found a point of the ball that the student gets wrong.
        margin: the attack on the margin did.
        point: of all that both found, the point of smallest student margin; the image itself where none is smaller.
        student_margin: the student's margin there, logits; negative where an attack succeeded.
        teacher_right: the teacher is right at the image.
        teacher_right_attacked: the teacher is right at the point.
        teacher_entropy: entropy of the teacher's softmax at the point, nats.
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
        """An attack on the student succeeded."""
        return self.ce | self.margin

    @property
    def transfers(self) -> Bool[Tensor, " batch"]:
        """It succeeded, and the teacher is wrong at the same point."""
        return self.fooled & ~self.teacher_right_attacked


def gradient_agreement(
    student: nn.Module,
    teacher: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    norm: Norm,
) -> GradientAgreement:
    """Compare the input gradients of two networks at images in [0, 1]; both in eval mode and left as they were.

    Args:
        student, teacher: from images to logits of the same classes.
        y: true labels.
        norm: of the threat, whose dual measures gradients.

    Raises:
        InputError: the networks differ in their classes.
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
    """Of the cross-entropy and of the margin to a rival; in float64, where squares of small ones do not vanish."""
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
    *,
    eps: float,
    norm: Norm,
    steps: int = 30,
    restarts: int = 4,
    seed: int = 0,
    indices: Int[Tensor, " batch"] | None = None,
) -> AttackAgreement:
    """Attack the student twice and ask the teacher about what was found; both in eval mode and left as they were.

    One attack raises the cross-entropy, one lowers the margin, from the same points: the image, then random ones keyed
    by seed and sample index. An image that the student gets wrong counts as a success of both.

    Args:
        student, teacher: from images in [0, 1] to logits of the same classes.
        y: true labels.
        eps: radius, pixel units.
        steps, restarts: gradient steps from each point, and points, of each attack.
        indices: of the samples; 0, 1, ... when None.

    Raises:
        InputError: the networks differ in their classes, eps is not positive, steps or restarts are below 1.
    """
    _check_attack(eps, steps, restarts)
    numbers = range(len(x)) if indices is None else indices.tolist()
    radii = x.new_full(x.shape[:1], eps)
    starts = [None, *(keyed_start(x, radii, norm, seed, numbers, restart) for restart in range(1, restarts))]
    with eval_mode(student), eval_mode(teacher):
        with torch.no_grad():
            before = teacher(x)
            _check_classes(student(x), before)
        attack = _Attack(student, x, y, eps, norm, steps, starts)
        loss, low = attack.weakest(cross_entropy_of(student, y)), attack.weakest(lambda z: -margins(student(z), y))
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


class _Attack(NamedTuple):
    """Gradient steps within the ball from given perturbations."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    norm: Norm
    steps: int
    starts: Sequence[Tensor | None]

    def weakest(self, objective: Objective) -> _Found:
        """The point of smallest margin that raising the objective leads to; the image where there is no smaller one."""
        x, best = self.x, self.x.clone()
        with torch.no_grad():
            least = margins(self.model(x), self.y)
        reach = x.new_full((len(x),), reachable(self.eps, self.norm, x))
        for start in self.starts:
            point = ascend(objective, x, eps=reach, norm=self.norm, steps=self.steps, start=start)
            with torch.no_grad():
                margin = margins(self.model(point), self.y)
            better = (margin < least) & (norms(point.double() - x.double(), self.norm) <= self.eps)
            best[better], least[better] = point[better], margin[better]
        return _Found(best, least)


def _check_attack(eps: float, steps: int, restarts: int) -> None:
    if not 0 < eps < math.inf:
        raise InputError(f"eps must be positive and finite, got {eps}: give a radius in pixel units, like 0.03")
    for name, value in (("steps", steps), ("restarts", restarts)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")


def _check_classes(logits: Tensor, teacher: Tensor) -> None:
    if logits.shape != teacher.shape:
        raise InputError(
            f"the student's logits have shape {tuple(logits.shape)}, the teacher's {tuple(teacher.shape)}: "
            "give a teacher of the same classes"
        )


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


@dataclass(frozen=True)
class Diagnosis:
    """The diagnostics of a student over the samples that it classifies correctly; nan where there are none.

    Attributes:
        samples: how many those are.
        clean: share of all samples that they are.
        gradient_gap, gradient_gap_dual, gradient_cosine, gradient_norm, margin_gradient_gap, teacher_entropy, ce_llm:
            means of the columns of these names; ``gradient_gap`` is GD and ``gradient_cosine`` GC.
        ce_attack, margin_attack: shares on which each attack succeeded.
        excess, excess_error: of the margin attack over the other, and the standard error over paired samples.
        fooled: samples on which an attack succeeded.
        transfer: of them, the share on which the teacher is wrong at the same point; nan without any.
        teacher_right, teacher_right_attacked: shares on which the teacher is right at the image and at that point.
        warnings: what these figures must not be trusted for, one line each.
    """

    samples: int
    clean: float
    gradient_gap: float
    gradient_gap_dual: float
    gradient_cosine: float
    gradient_norm: float
    margin_gradient_gap: float
    teacher_entropy: float
    ce_llm: float
    ce_attack: float
    margin_attack: float
    excess: float
    excess_error: float
    fooled: int
    transfer: float
    teacher_right: float
    teacher_right_attacked: float
    warnings: tuple[str, ...]


#: Columns that a diagnosis has the means of.
MEANS = (
    *("gradient_gap", "gradient_gap_dual", "gradient_cosine", "gradient_norm", "margin_gradient_gap"),
    *("teacher_entropy", "ce_llm", "ce_attack", "margin_attack", "teacher_right", "teacher_right_attacked"),
)


def diagnose(rows: MethodRows) -> Diagnosis | None:
    """Sum up the rows of the method ``diagnostics``; None where it could not run."""
    if rows.count(Status.UNSUPPORTED):
        return None
    asked = rows["status"] == Status.NOT_CERTIFIED
    means = {name: _mean(rows[name][asked]) for name in MEANS}
    more = rows["margin_attack"][asked].astype(float) - rows["ce_attack"][asked]
    fooled = rows["transfers"][asked] >= 0
    excess, error = _mean(more), float(more.std(ddof=1)) / math.sqrt(len(more)) if len(more) > 1 else math.nan
    clean = _mean(rows["correct"])
    collapsed = _collapse(clean, len(rows), int(rows.attributes.get("classes", 0)), means["gradient_norm"])
    return Diagnosis(
        samples=int(asked.sum()),
        clean=clean,
        **means,
        excess=excess,
        excess_error=error,
        fooled=int(fooled.sum()),
        transfer=_mean(rows["transfers"][asked][fooled]),
        warnings=(*_masking(means["ce_attack"], means["margin_attack"], excess, error), *collapsed),
    )


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _masking(ce: float, margin: float, excess: float, error: float) -> list[str]:
    """Whether the cross-entropy hides what the margin shows: enough to matter, and more than chance would."""
    if not (excess > MASKED and excess > 2 * error):  # nothing is known of one sample's error
        return []
    return [
        f"gradient masking: the attack on the margin succeeds on {margin:.1%} of the samples, PGD on the cross-entropy "
        f"on {ce:.1%} (paired difference {excess:.1%}, standard error {error:.1%}): do not trust PGD on the "
        "cross-entropy for this student"
    ]


def _collapse(clean: float, samples: int, classes: int, gradient: float) -> list[str]:
    """Whether a network guesses and has hardly any gradient: its outputs do not depend on the image."""
    if samples < ENOUGH or classes < 2 or not (clean <= chance_limit(classes, samples) and gradient < FLAT):
        return []
    return [
        f"collapse: clean accuracy is {clean:.1%}, near chance for {classes} classes, and the mean gradient norm "
        f"{gradient:.2g}: the student is almost constant, train it with a smaller weight of the alignment"
    ]


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
