"""The certifier of ``joint``: find the largest radius at which student and teacher provably predict one class."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.certifier import radius_columns
from verifiers.bound_propagation.engine import Memory
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.radius import Evaluation, RadiusSearch
from verifiers.core.question import Question
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Answer, Batch


@runtime_checkable
class JointSettings(Protocol):
    """The settings of the method; see ``verifiers.methods.joint``."""

    @property
    def bound(self) -> str: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def time_limit(self) -> float: ...


@dataclass
class JointCertifier:
    """The method prepared for a pair of networks."""

    engine: JointEngine
    settings: JointSettings
    question: Question

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: JointSettings
    ) -> "JointCertifier":
        """Build both graphs and attack their bounds on the samples.

        Raises:
            Unsupported: there is no teacher, or a network cannot be captured.
            Contradiction: a point of the ball breaks a bound.
        """
        return cls(JointEngine.prepare(program, samples, question, settings.bound), settings, question)

    @property
    def batch_size(self) -> int:
        """The number of samples that suits the engine."""
        return self.engine.batch_size

    @property
    def notes(self) -> dict[str, str]:
        """The engine and its graphs."""
        return self.engine.notes

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Bound both margins and their difference at eps, then search for the largest radius."""
        question, memory = self.question, Memory(len(batch))
        balls = Balls.around(batch.x, question.eps.value, question.norm)
        at_eps = self.engine.pair_bounds(balls, batch.predicted, method=self.settings.bound, memory=memory)

        def bound(rows: Tensor, radius: Tensor) -> Evaluation:
            if torch.equal(radius, balls.eps[rows]):
                return Evaluation(at_eps.agreement[rows], at_eps.radius[rows], at_eps.rounding[rows])
            chosen = Balls(batch.x[rows], radius, question.norm)
            asked = (chosen, batch.predicted[rows])
            found = self.engine.pair_bounds(*asked, method=self.settings.bound, memory=memory.of(rows))
            return Evaluation(found.agreement, found.radius, found.rounding)

        search = RadiusSearch.of(self.settings, question, batch)
        columns = {
            **radius_columns(search(bound, self._margin(batch)), question.eps.value),
            "margin": at_eps.agreement.cpu().numpy(),
            "gap": at_eps.gap.cpu().numpy(),
            "deficit": at_eps.deficit.cpu().numpy(),
        }
        yield Answer(batch.rows, columns)

    def _margin(self, batch: Batch) -> Float[Tensor, " batch"]:
        """Compute the smaller margin of the two networks at the images."""
        with torch.no_grad():
            logits = self.engine.pair(batch.x).double()
        return torch.minimum(*(margins(part, batch.predicted) for part in logits.chunk(2, 1)))
