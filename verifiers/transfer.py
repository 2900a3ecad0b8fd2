"""Does the student match the teacher? What carries a teacher's robustness over to a student, sample by sample.

Fix an image x, a class y, a norm with dual norm ||.||_*, and the ball B of radius eps within the image box. For a class
j other than y let m_j = f_y - f_j be a network's margin, J_j its gradient at x, gamma its distance from its own
linearisation (``local_linearity``). With the output deficit a_j = max(0, m_j^t(x) - m_j^s(x)) and the gradient gap
b_j = ||J_j^s - J_j^t||_*, for all points of B:

    A      m_j^s >= min_B m_j^t - [ a_j + eps b_j + gamma_minus_j^s + gamma_plus_j^t ]
    B      m_j^s >= m_j^t(x) - a_j - eps (||J_j^t||_* + b_j) - gamma_minus_j^s
    C1     CE^s <= CE^t(x) + D + eps (||grad CE^t||_* + G) + gamma_plus_CE^s
    C2     CE^s <= max_B CE^t + D + eps G + gamma_plus_CE^s + gamma_minus_CE^t
    joint  m_j^s >= min_B m_j^t + min_B (m_j^s - m_j^t), the difference bounded in one graph of both networks

with D = max(0, CE^s(x) - CE^t(x)) and G = ||grad CE^s - grad CE^t||_*. A, B and C follow from the definition of gamma
and Hoelder's inequality; a cross-entropy below log 2 leaves y more than half of the probability. Every gamma here is a
certified upper bound, every minimum a certified lower one.

Small output and gradient gaps, which is what distillation with input gradient alignment trains for, imply nothing by
themselves: the student must also be locally linear, and aligned in its margins rather than in its loss alone.
"""

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.checks import withstand
from verifiers.bound_propagation.engine import margin_specification
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.bounds import DUAL
from verifiers.certificate import Column, Columns, Guarantee, MethodInfo, Norm, Request, Status, stored
from verifiers.lipschitz.jacobians import Linearised
from verifiers.lipschitz.layers import Network
from verifiers.local_linearity import Linearity, LossLinearity, climb, measure, of_cross_entropy

#: Classes besides the predicted one that the shortfall's attack goes through.
ATTACKED_CLASSES = 20


class Blocker(IntEnum):
    """The largest term between the teacher's certified margin and the student's, where nothing certifies that."""

    NONE = 0
    TEACHER = 1  # the teacher has no certificate to pass on
    DEFICIT = 2  # the student's margin at the image is smaller
    GRADIENT = 3  # the gradients differ
    STUDENT = 4  # the student is not linear enough
    REFERENCE = 5  # the teacher is not linear enough


class Terms(NamedTuple):
    """What the theorems are made of, ``(batch, classes - 1)`` each: values, gradients' dual norms, bounds of gamma."""

    teacher: Tensor  # m_t(x)
    least: Tensor  # min_B m_t, certified
    deficit: Tensor  # a
    gap: Tensor  # b
    steepness: Tensor  # ||J_t||
    student_gamma: Tensor  # gamma_minus of the student
    teacher_gamma: Tensor  # gamma_plus of the teacher


def theorem_a(terms: Terms, eps: float) -> Float[Tensor, "batch rows"]:
    """Lower bounds of the student's margins on the ball, from the teacher's least ones."""
    return terms.least - (terms.deficit + eps * terms.gap + terms.student_gamma + terms.teacher_gamma)


def theorem_b(terms: Terms, eps: float) -> Float[Tensor, "batch rows"]:
    """Lower bounds of the student's margins on the ball, from the teacher's values and gradients at the image."""
    linear = terms.teacher - terms.deficit - eps * (terms.steepness + terms.gap)
    return linear - terms.student_gamma


class LossTerms(NamedTuple):
    """What theorem C is made of, one value per sample."""

    teacher: Tensor  # CE_t(x)
    worst: Tensor  # max_B CE_t, certified
    deficit: Tensor  # D
    gap: Tensor  # G
    steepness: Tensor  # ||grad CE_t||
    student_gamma: Tensor  # gamma_plus of the student
    teacher_gamma: Tensor  # gamma_minus of the teacher


def theorem_c1(terms: LossTerms, eps: float) -> Float[Tensor, " batch"]:
    """Upper bound of the student's cross-entropy on the ball, from the teacher's value and gradient at the image."""
    return terms.teacher + terms.deficit + eps * (terms.steepness + terms.gap) + terms.student_gamma


def theorem_c2(terms: LossTerms, eps: float) -> Float[Tensor, " batch"]:
    """Upper bound of the student's cross-entropy on the ball, from the teacher's largest one."""
    return terms.worst + terms.deficit + eps * terms.gap + terms.student_gamma + terms.teacher_gamma


def margin_terms(student: Linearity, teacher: Linearity, norm: Norm) -> Terms:
    """The terms of theorems A and B; both about the same rows and balls."""
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
    """The terms of theorem C; both about the same class and balls."""
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
    """The largest term of theorem A for the class with the least bound; TEACHER where the teacher gives nothing."""
    parts = torch.stack(
        [terms.deficit, eps * terms.gap, terms.student_gamma, terms.teacher_gamma]
    )  # in the order of Blocker, from DEFICIT on
    worst = theorem_a(terms, eps).argmin(1)
    largest = parts.gather(2, worst[None, :, None].expand(len(parts), -1, 1))[:, :, 0].argmax(0) + Blocker.DEFICIT
    return torch.where((terms.least > 0).all(1), largest, Blocker.TEACHER.value)


@dataclass
class _Certifier:
    networks: tuple[Network, Network]
    joint: JointEngine
    request: Request

    @property
    def batch_size(self) -> int:
        return max(1, self.joint.batch_size // 4)

    @property
    def notes(self) -> dict[str, str]:
        reasons = [
            f"{name}: {n.reason}" for name, n in zip(("student", "teacher"), self.networks, strict=True) if n.reason
        ]
        return {"interval": "; ".join(reasons)} if reasons else {}

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        eps, norm = self.request.eps.value, self.request.norm
        logits, allowance = self.joint.allowed(x, eps)
        rows = margin_specification(predicted, logits.shape[1] // 2, torch.float64)
        student, teacher = (measure(network, x.double(), rows, eps, norm) for network in self.networks)
        terms = margin_terms(student, teacher, norm)
        by_student, by_teacher = (of_cross_entropy(found, eps, norm) for found in (student, teacher))
        losses = loss_terms(by_student, by_teacher, norm)
        slack = allowance[:, None]
        bounds = {
            "direct": student.low - slack,
            "theorem_a": theorem_a(terms, eps) - slack,
            "theorem_b": theorem_b(terms, eps) - slack,
            "joint": teacher.low + self._difference(x.double(), rows) - slack,
        }
        least = {name: bound.amin(1) for name, bound in bounds.items()}
        half = math.log(2.0) - allowance
        ce = {"theorem_c1": theorem_c1(losses, eps), "theorem_c2": theorem_c2(losses, eps)}
        through = torch.stack([bounds[name] for name in ("theorem_a", "theorem_b", "joint")]).nan_to_num(nan=-math.inf)
        margin = through.amax(0).amin(1)
        holds = (margin > 0) | torch.stack([(half - bound) > 0 for bound in ce.values()]).any(0)
        holds &= (teacher.low - slack > 0).all(1)  # there must be a certificate to carry over
        block = torch.where(holds | (least["direct"] > 0), Blocker.NONE.value, blockers(terms, eps))
        values = {
            "radius": torch.full_like(margin, eps) * holds,
            "margin": margin,
            **least,
            **ce,
            "teacher": (teacher.low - slack).amin(1),
            "deficit": terms.deficit.amax(1),
            "gradient_gap": terms.gap.amax(1),
            "gamma_student": terms.student_gamma.amax(1),
            "gamma_teacher": terms.teacher_gamma.amax(1),
            "shortfall": self._shortfall(terms, teacher.linear),
            "blocker": block,
        }
        return stored(torch.where(holds, Status.CERTIFIED.value, Status.NOT_CERTIFIED.value), values)

    def _difference(self, x: Tensor, rows: Tensor) -> Float[Tensor, "batch rows"]:
        """Lower bounds of m_s - m_t over the balls, in one graph of both networks."""
        limits = torch.full((len(x),), self.request.eps.value, dtype=x.dtype, device=x.device)
        asked = torch.cat([rows, -rows], 2)
        return self.joint.planes(x, limits, asked, norm=self.request.norm, method="crown").bound

    def _shortfall(self, terms: Terms, teacher: Linearised) -> Float[Tensor, " batch"]:
        """What the student lacks to be, to first order, as robust as the teacher: see the column."""
        eps, norm, (batch, rows) = self.request.eps.value, self.request.norm, terms.gap.shape
        if rows > ATTACKED_CLASSES:
            return terms.gap.new_full((batch,), float("nan"))
        exact, steps = self.networks[1].native.model, int(self.request.options["steps"])
        row, gradient = teacher.rows.flatten(0, 1), teacher.gradients.flatten(0, 1)
        x, values = teacher.x.repeat_interleave(rows, 0), teacher.values.flatten()

        def below(z: Tensor) -> Tensor:
            return values + (gradient * (z - x)).flatten(1).sum(1) - (row * exact(z)).sum(1)

        found = climb(below, x, eps, norm, steps).reshape(batch, rows)
        return (terms.deficit + eps * terms.gap + terms.student_gamma - found).amax(1)


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> _Certifier:
    """Build the graphs of both networks and of the pair, and try to break their bounds on the samples.

    Raises:
        Unsupported: there is no teacher, or a network cannot be captured.
        Contradiction: a point of the ball breaks a bound.
    """
    joint = JointEngine.prepare(model, samples, request)
    networks = (Network.prepare(joint.pair.student, samples), Network.prepare(joint.pair.teacher, samples))
    for network in networks:
        withstand(network.native, samples, request.eps.value, norm=request.norm, method="crown")
    return _Certifier(networks, joint, request)


def _bound(name: str, description: str, units: str = "logits") -> Column:
    return Column(name, "float64", units, description)


TRANSFER = MethodInfo(
    name="transfer",
    guarantee=Guarantee.DETERMINISTIC,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="the teacher's certificate carries over: its bounds and what the student differs by keep the class at eps",
    paper="theorems A, B, C of this toolkit, after Shao et al., arXiv 2110.12072; joint bounds by CROWN",
    cost="CROWN of student, teacher and both together at one radius, with two more rows per class",
    prepare=_prepare,
    needs_teacher=True,
    columns=(
        _bound("direct", "the student's own least margin on the ball at eps, by CROWN"),
        _bound("teacher", "the teacher's least margin towards the student's class, by CROWN"),
        _bound("theorem_a", "the student's least margin, from the teacher's least ones"),
        _bound("theorem_b", "the student's least margin, from the teacher's values and gradients"),
        _bound("joint", "the student's least margin, from the teacher's least ones and the joint differential bound"),
        _bound("theorem_c1", "the student's largest cross-entropy, from the teacher's value and gradient", "nats"),
        _bound("theorem_c2", "the student's largest cross-entropy, from the teacher's largest one", "nats"),
        _bound("deficit", "largest output deficit a of a margin at the image"),
        _bound("gradient_gap", "largest dual norm b of the difference of a margin's gradients", "logits per pixel"),
        _bound("gamma_student", "bound: how far any margin of the student falls below its linearisation"),
        _bound("gamma_teacher", "bound: how far any margin of the teacher rises above its linearisation"),
        _bound(
            "shortfall",
            "bound of a + eps b + gamma_minus(student) - gamma_minus(teacher), the largest over classes: at most 0, "
            "the student's first-order certificate at eps is no smaller than the teacher's; nan for many classes",
        ),
        Column("blocker", "int64", "", "; ".join(f"{b.value} {b.name}" for b in Blocker)),
    ),
    options={"steps": 10},
)
