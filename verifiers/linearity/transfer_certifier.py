"""The certifier of ``transfer``, which finds the teacher's certificates that carry over to the student."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation import JointEngine, attack_bounds
from verifiers.core.errors import Unsupported
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph.program import Program
from verifiers.linearity.certified import measure, of_cross_entropy
from verifiers.linearity.certifier import Steps
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
from verifiers.results.summaries.transfer import Blocker
from verifiers.runtime.certifier import Answer, Batch, as_columns

#: The most classes, besides the predicted one, that the attack on the shortfall covers.
ATTACKED_CLASSES = 20
#: A cross-entropy below this gives the class more than half of the probability; less the rounding of float64.
HALF = math.log(2.0) * (1 - 1e-9)


@dataclass
class TransferCertifier:
    """The method prepared for a pair of networks."""

    networks: tuple[Network, Network]
    joint: JointEngine
    settings: Steps
    question: Question

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: Steps
    ) -> "TransferCertifier":
        """Build the graphs of both networks and of the pair, and attack their bounds on the samples.

        Raises:
            Unsupported: there is no teacher, or a network cannot be captured.
            Contradiction: a point of the ball breaks a bound.
        """
        if question.teacher is None:
            raise Unsupported("transfer bounds compare with a teacher: give one")
        joint = JointEngine.prepare(program, samples, question)
        ours, theirs = (Network.prepare(each, samples, question.arithmetic) for each in (program, question.teacher))
        networks = (ours, theirs)
        for network in networks:
            attack_bounds(network.native, samples, question.eps.value, norm=question.norm, method="crown")
        return cls(networks, joint, settings, question)

    @property
    def batch_size(self) -> int:
        return max(1, self.joint.batch_size // 4)

    @property
    def notes(self) -> dict[str, str]:
        reasons = [
            f"{name}: {n.reason}" for name, n in zip(("student", "teacher"), self.networks, strict=True) if n.reason
        ]
        return {"interval": "; ".join(reasons)} if reasons else {}

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Evaluate all theorems at eps; a sample is certified if one of them keeps the class."""
        eps, norm, x = self.question.eps.value, self.question.norm, batch.x
        rows = margin_specification(batch.predicted, batch.classes, torch.float64)
        student, teacher = (measure(network, x.double(), rows, eps, norm) for network in self.networks)
        terms = margin_terms(student, teacher, norm)
        by_student, by_teacher = (of_cross_entropy(found, eps, norm) for found in (student, teacher))
        losses = loss_terms(by_student, by_teacher, norm)
        bounds = {
            "direct": student.low,
            "theorem_a": theorem_a(terms, eps),
            "theorem_b": theorem_b(terms, eps),
            "joint": teacher.low + self._difference(x.double(), rows),
        }
        least = {name: bound.amin(1) for name, bound in bounds.items()}
        ce = {"theorem_c1": theorem_c1(losses, eps), "theorem_c2": theorem_c2(losses, eps)}
        through = torch.stack([bounds[name] for name in ("theorem_a", "theorem_b", "joint")]).nan_to_num(nan=-math.inf)
        margin = through.amax(0).amin(1)
        holds = (margin > 0) | torch.stack([bound < HALF for bound in ce.values()]).any(0)
        holds &= (teacher.low > 0).all(1)  # there must be a certificate to carry over
        block = torch.where(holds | (least["direct"] > 0), Blocker.NONE.value, blockers(terms, eps))
        values = {
            "radius": torch.full_like(margin, eps) * holds,
            "margin": margin,
            **least,
            **ce,
            "rounding": torch.maximum(student.rounding, teacher.rounding).amax(1),
            "teacher": teacher.low.amin(1),
            "deficit": terms.deficit.amax(1),
            "gradient_gap": terms.gap.amax(1),
            "gamma_student": terms.student_gamma.amax(1),
            "gamma_teacher": terms.teacher_gamma.amax(1),
            "shortfall": self._shortfall(terms, teacher.linear),
            "blocker": block,
        }
        status = torch.where(holds, Status.CERTIFIED.value, Status.NOT_CERTIFIED.value)
        yield Answer(batch.rows, as_columns(status, values))

    def _difference(self, x: Tensor, rows: Tensor) -> Float[Tensor, "batch rows"]:
        """Bound m_s - m_t over the balls from below, in one graph of both networks."""
        balls = Balls.around(x, self.question.eps.value, self.question.norm)
        return self.joint.ask(balls, torch.cat([rows, -rows], 2), "crown").bound

    def _shortfall(self, terms: Terms, teacher: Linearised) -> Float[Tensor, " batch"]:
        """Bound the student's shortfall from the teacher's robustness, to first order; see the column."""
        eps, norm, (batch, rows) = self.question.eps.value, self.question.norm, terms.gap.shape
        if rows > ATTACKED_CLASSES:
            return terms.gap.new_full((batch,), float("nan"))
        exact, steps = self.networks[1].native.model, self.settings.steps
        row, gradient = teacher.rows.flatten(0, 1), teacher.gradients.flatten(0, 1)
        x, values = teacher.x.repeat_interleave(rows, 0), teacher.values.flatten()

        def below(z: Tensor) -> Tensor:
            return values + (gradient * (z - x)).flatten(1).sum(1) - (row * exact(z)).sum(1)

        found = climb(below, x, eps, norm, steps).reshape(batch, rows)
        return (terms.deficit + eps * terms.gap + terms.student_gamma - found).amax(1)
