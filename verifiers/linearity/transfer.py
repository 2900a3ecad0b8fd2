"""Transfer a teacher's robustness to a student, sample by sample.

Fix an image x, a class y, a norm with dual norm ||.||_*, and the ball B of radius eps within the image box. For a class
j other than y, let m_j = f_y - f_j be a network's margin, J_j its gradient at x, and gamma its distance from its own
linearisation (``local_linearity``). Let a_j = max(0, m_j^t(x) - m_j^s(x)) be the output deficit and
b_j = ||J_j^s - J_j^t||_* the gradient gap. Then, for all points of B:

    A      m_j^s >= min_B m_j^t - [ a_j + eps b_j + gamma_minus_j^s + gamma_plus_j^t ]
    B      m_j^s >= m_j^t(x) - a_j - eps (||J_j^t||_* + b_j) - gamma_minus_j^s
    C1     CE^s <= CE^t(x) + D + eps (||grad CE^t||_* + G) + gamma_plus_CE^s
    C2     CE^s <= max_B CE^t + D + eps G + gamma_plus_CE^s + gamma_minus_CE^t
    joint  m_j^s >= min_B m_j^t + min_B (m_j^s - m_j^t), the difference bounded in one graph of both networks

with D = max(0, CE^s(x) - CE^t(x)) and G = ||grad CE^s - grad CE^t||_*. A, B and C follow from the definition of gamma
and Hoelder's inequality. A cross-entropy below log 2 gives y more than half of the probability. Every gamma here is a
certified upper bound, every minimum a certified lower bound.

Distillation with input gradient alignment trains for small output and gradient gaps. Those alone imply nothing: the
student must also be locally linear, and aligned in its margins rather than in its loss alone.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import DUAL
from verifiers.linearity.certified import Linearity, LossLinearity
from verifiers.results.summaries.transfer import Blocker


class Terms(NamedTuple):
    """The terms of theorems A and B, ``(batch, classes - 1)`` each: values, gradients' dual norms, bounds of gamma."""

    teacher: Tensor  # m_t(x)
    least: Tensor  # min_B m_t, certified
    deficit: Tensor  # a
    gap: Tensor  # b
    steepness: Tensor  # ||J_t||
    student_gamma: Tensor  # gamma_minus of the student
    teacher_gamma: Tensor  # gamma_plus of the teacher


def theorem_a(terms: Terms, eps: float) -> Float[Tensor, "batch rows"]:
    """Bound the student's margins on the ball from below, by the teacher's least ones."""
    return terms.least - (terms.deficit + eps * terms.gap + terms.student_gamma + terms.teacher_gamma)


def theorem_b(terms: Terms, eps: float) -> Float[Tensor, "batch rows"]:
    """Bound the student's margins on the ball from below, by the teacher's values and gradients at the image."""
    linear = terms.teacher - terms.deficit - eps * (terms.steepness + terms.gap)
    return linear - terms.student_gamma


class LossTerms(NamedTuple):
    """The terms of theorem C, one value per sample."""

    teacher: Tensor  # CE_t(x)
    worst: Tensor  # max_B CE_t, certified
    deficit: Tensor  # D
    gap: Tensor  # G
    steepness: Tensor  # ||grad CE_t||
    student_gamma: Tensor  # gamma_plus of the student
    teacher_gamma: Tensor  # gamma_minus of the teacher


def theorem_c1(terms: LossTerms, eps: float) -> Float[Tensor, " batch"]:
    """Bound the student's cross-entropy on the ball from above, by the teacher's value and gradient at the image."""
    return terms.teacher + terms.deficit + eps * (terms.steepness + terms.gap) + terms.student_gamma


def theorem_c2(terms: LossTerms, eps: float) -> Float[Tensor, " batch"]:
    """Bound the student's cross-entropy on the ball from above, by the teacher's largest one."""
    return terms.worst + terms.deficit + eps * terms.gap + terms.student_gamma + terms.teacher_gamma


def margin_terms(student: Linearity, teacher: Linearity, norm: Norm) -> Terms:
    """Compute the terms of theorems A and B; both arguments are for the same rows and balls."""
    gap = (student.linear.gradients - teacher.linear.gradients).flatten(2)
    return Terms(
        teacher=teacher.linear.values,
        least=teacher.low,
        deficit=(teacher.linear.values - student.linear.values).clamp_min(0.0),
        gap=torch.linalg.vector_norm(gap, DUAL[norm], dim=2),
        steepness=teacher.linear.steepness(norm),
        student_gamma=student.gamma.minus,
        teacher_gamma=teacher.gamma.plus,
    )


def loss_terms(student: LossLinearity, teacher: LossLinearity, norm: Norm) -> LossTerms:
    """Compute the terms of theorem C; both arguments are for the same class and balls."""
    return LossTerms(
        teacher=teacher.value,
        worst=teacher.high,
        deficit=(student.value - teacher.value).clamp_min(0.0),
        gap=torch.linalg.vector_norm(student.gradient - teacher.gradient, DUAL[norm], dim=1),
        steepness=torch.linalg.vector_norm(teacher.gradient, DUAL[norm], dim=1),
        student_gamma=student.gamma_plus,
        teacher_gamma=teacher.gamma_minus,
    )


def blockers(terms: Terms, eps: float) -> Int[Tensor, " batch"]:
    """Find the largest term of theorem A for the class of least bound; TEACHER if the teacher is not certified."""
    parts = torch.stack(
        [terms.deficit, eps * terms.gap, terms.student_gamma, terms.teacher_gamma]
    )  # in the order of Blocker, from DEFICIT on
    worst = theorem_a(terms, eps).argmin(1)
    largest = parts.gather(2, worst[None, :, None].expand(len(parts), -1, 1))[:, :, 0].argmax(0) + Blocker.DEFICIT
    return torch.where((terms.least > 0).all(1), largest, Blocker.TEACHER.value)
