"""The method ``transfer``: which of the teacher's certificates carry over to the student."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.checks import withstand
from verifiers.bound_propagation.joint import JointEngine
from verifiers.core.columns import Column, Columns
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.linearity.certified import measure, of_cross_entropy
from verifiers.linearity.estimates import climb
from verifiers.linearity.transfer import (
    Terms,
    blockers,
    loss_terms,
    margin_terms,
    theorem_a,
    theorem_b,
    theorem_c1,
    theorem_c2,
)
from verifiers.lipschitz.jacobians import Linearised
from verifiers.lipschitz.layers import Network
from verifiers.methods.base import MethodInfo, Request, stored
from verifiers.results.summaries.transfer import Blocker

#: Classes besides the predicted one that the shortfall's attack goes through.
ATTACKED_CLASSES = 20


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
        balls = Balls.around(x, self.request.eps.value, self.request.norm)
        return self.joint.ask(balls, torch.cat([rows, -rows], 2), "crown").bound

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
