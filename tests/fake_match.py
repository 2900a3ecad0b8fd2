"""A small stand-in for the certifier of ``match``: CROWN of both networks in one graph, and random points."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import verifiers.bound_propagation
from verifiers.bound_propagation import JointEngine
from verifiers.core.errors import Unsupported
from verifiers.core.question import Question
from verifiers.core.relation import Property
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls, keyed_start, norms
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Answer, Batch, as_columns


@dataclass
class FakeMatch:
    engine: JointEngine
    question: Question
    settings: Any
    batch_size: int = 8

    @property
    def notes(self) -> dict[str, str]:
        return {"engine": "native"}

    @classmethod
    def prepare(cls, program: Program, samples: Tensor, question: Question, settings: Any) -> "FakeMatch":
        if question.teacher is None:
            raise Unsupported("match compare with a teacher: give one")
        return cls(JointEngine.prepare(program, samples, question), question, settings)

    def violation(self, point: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            s, t = self.engine.pair(point).double().chunk(2, 1)
        relation, own = self.settings.relation, t.argmax(1)
        if relation.kind is Property.CLOSE:
            found = (s - t).abs().amax(1) - relation.tolerance
        elif relation.kind is Property.NOT_WORSE:
            found = margins(t, c) - margins(s, c) - relation.tolerance
        elif relation.kind is Property.TRANSFER:
            found = torch.minimum(margins(t, c), -margins(s, c))
        else:
            found = torch.minimum(margins(t, own) - relation.delta, -margins(s, own))
        return found, s.argmax(1), own

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        x, eps, norm = batch.x, self.question.eps.value, self.question.norm
        with torch.no_grad():
            c = self.engine.pair(x).chunk(2, 1)[1].argmax(1)
        best, (size, student, teacher) = x.clone(), self.violation(x, c)
        stage = torch.ones(len(x), dtype=torch.uint8)
        for k in range(40):
            delta = keyed_start(x, torch.full((len(x),), eps), norm, 0, batch.indices.tolist(), k + 1)
            point = (x + (delta.sign() * eps * (1 - 1e-6) if norm == "linf" and k % 2 else delta)).clamp(0, 1)
            value, s, t = self.violation(point, c)
            better = (size <= 0) & (value > size)
            best[better], size[better], stage[better] = point[better], value[better], 2
            hit = better & (value > 0)
            student[hit], teacher[hit] = s[hit], t[hit]
        bounds = self.engine.pair_bounds(Balls.around(x, eps, norm), c)
        refuted, proved = size > 0, bounds.agreement > 0
        proved &= ~refuted & (torch.tensor(self.settings.property in ("same-class", "transfer")))
        nan = torch.full_like(size, torch.nan)
        status = torch.where(refuted, Status.FALSIFIED, torch.where(proved, Status.CERTIFIED, Status.TIMEOUT))
        distance = norms(best.double() - x.double(), norm)
        values = {
            "radius": proved.double() * eps,
            "margin": torch.where(refuted, -size, torch.where(proved, bounds.agreement, nan)),
            "rounding": bounds.rounding,
            "stage": torch.where(refuted, stage, torch.where(proved, 3, 0)).byte(),
            "domains": torch.ones_like(c),
            "student_class": student,
            "teacher_class": teacher,
            "distance": torch.where(refuted, distance, nan),
            "violation": torch.where(refuted, size, nan),
            "least": nan,
            "counterexample": best.where(refuted.view(-1, *[1] * (x.dim() - 1)), torch.nan),
        }
        yield Answer(batch.rows, as_columns(status, values))


if not hasattr(verifiers.bound_propagation, "MatchCertifier"):
    verifiers.bound_propagation.MatchCertifier = FakeMatch
