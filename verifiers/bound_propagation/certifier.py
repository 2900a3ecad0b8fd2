"""The certifier of the bound-propagation methods: bound margins, and find the largest radius that this proves."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.engine import ITERATIONS, SDP_CROWN, Engine, Memory, Planes
from verifiers.bound_propagation.engines import build, margins_of
from verifiers.bound_propagation.radius import Evaluation, RadiusSearch, SearchResult
from verifiers.bound_propagation.second_opinion import SecondOpinion
from verifiers.core.columns import Columns
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Answer, Batch, as_columns
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory


@runtime_checkable
class MarginSettings(Protocol):
    """The settings of a bound-propagation method; see ``verifiers.methods.crown``."""

    @property
    def kind(self) -> str: ...
    @property
    def tolerance(self) -> float: ...
    @property
    def time_limit(self) -> float: ...
    @property
    def engine(self) -> str: ...
    @property
    def cross_check(self) -> int: ...


@dataclass
class MarginCertifier:
    """A bound-propagation method prepared for one network."""

    engine: Engine
    settings: MarginSettings
    question: Question
    passed_over: str
    opinion: SecondOpinion | None

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: MarginSettings
    ) -> "MarginCertifier":
        """Build the graph and attack its bounds on the samples, at eps and at a larger radius.

        Raises:
            Unsupported: no engine supports the network; the message names the layer that each rejects.
            Contradiction: a point of the ball breaks a bound.
        """
        engine, reasons = build(program, samples, settings.engine, question, method=settings.kind)
        given = (program, samples, engine, question, settings.kind, settings.cross_check)
        opinion = SecondOpinion.prepare(*given) if settings.cross_check else None
        return cls(engine, settings, question, "; ".join(reasons), opinion)

    @property
    def batch_size(self) -> int:
        """The number of samples that suits the engine."""
        return self.engine.batch_size

    @property
    def notes(self) -> dict[str, str]:
        """The engine, and the second opinion."""
        notes = {"engine": self.engine.name}
        if self.passed_over:
            notes["passed_over"] = self.passed_over
        return notes if self.opinion is None else {**notes, "cross_check": self.opinion.note}

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Search for the largest certified radius of every sample."""
        if self.opinion is not None:
            self.opinion(batch)
        found = self._search(batch)
        yield Answer(batch.rows, radius_columns(found, self.question.eps.value))

    def _search(self, batch: Batch) -> SearchResult:
        """Run the method's search; one that optimises starts from the radius that CROWN proves at less cost."""
        searching, started = RadiusSearch.of(self.settings, self.question, batch), time.perf_counter()
        search = partial(searching, margin=batch.margin)
        if self.settings.kind not in ("alpha-crown", SDP_CROWN):
            return search(self._bound(self.settings.kind, batch))
        first = search(self._bound("crown", batch))
        spent, begun = time.perf_counter() - started, first._replace(finished=torch.zeros_like(first.finished))
        if spent > searching.seconds:
            return begun
        try:
            found = search(self._bound(self.settings.kind, batch), known=first.radius, spent=spent)
        except MEMORY_ERRORS as error:
            if out_of_memory(error) and len(batch) == 1 and bool(first.radius > 0):
                return begun
            raise
        ended = ~found.margin.isnan()  # else time was up, and what CROWN proved holds
        margin, rounding = (
            torch.where(ended, getattr(found, name), getattr(first, name)) for name in ("margin", "rounding")
        )
        return found._replace(margin=margin, rounding=rounding)

    def _bound(self, method: str, batch: Batch) -> Callable[[Tensor, Tensor], Evaluation]:
        iterations, memory = getattr(self.settings, "iterations", ITERATIONS), Memory(len(batch))

        def bound(chosen: Tensor, eps: Tensor) -> Evaluation:
            balls, predicted = Balls(batch.x[chosen], eps, self.question.norm), batch.predicted[chosen]
            asked = partial(margins_of, self.engine, balls, (predicted, batch.classes), method)
            return _evaluation(asked(iterations=iterations, memory=memory.of(chosen)), eps)

        return bound


def _evaluation(planes: Planes, eps: Float[Tensor, " batch"]) -> Evaluation:
    """Compute the margin's bound, and the radius at which the lowest plane meets zero."""
    margin, rounding = planes.least()
    radius = (planes.value / planes.steepness).masked_fill(planes.bound == torch.inf, torch.nan).amin(1)
    return Evaluation(margin, torch.minimum(radius, eps), rounding)


def radius_columns(found: SearchResult, eps: float) -> Columns:
    """Build the columns of a search; stored radii are rounded down, except eps, which itself was proved."""
    radius = torch.where(found.margin > 0, found.radius.clamp_min(eps), found.radius)
    nothing = torch.where(found.finished, Status.NOT_CERTIFIED.value, Status.TIMEOUT.value)
    status = torch.where(radius > 0, Status.CERTIFIED.value, nothing)
    return as_columns(status, {"radius": radius, "margin": found.margin, "rounding": found.rounding})
