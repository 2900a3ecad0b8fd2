"""Complete verification: decide every sample at eps by the first stage of a cascade that can.

Attack, IBP and CROWN run on whole batches. The open samples are decided one at a time, by alpha-CROWN, on l2 balls by
bounds that follow the ball too, and by branch and bound over the intervals from them. On networks of affine layers and
ReLUs in linf balls, branch and bound terminates; elsewhere it may run out of neurons to split.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.checks import attack_bounds
from verifiers.bound_propagation.engine import Engine, better
from verifiers.bound_propagation.engines import build, margins_of, native_engine
from verifiers.bound_propagation.native import alpha, sdp
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.classes import MANY, least_margins
from verifiers.bound_propagation.native.code_search import CodeSearch, codes_of
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.columns import Columns
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.attack import Attack
from verifiers.geometry.attacks.hunt import Hunt
from verifiers.geometry.attacks.search import Victims
from verifiers.geometry.balls import Balls, norms
from verifiers.geometry.margins import margin_specification, margins, some_margins
from verifiers.graph.program import Program
from verifiers.results.summaries.complete import Stage
from verifiers.runtime import deadline
from verifiers.runtime.certifier import Answer, Batch
from verifiers.runtime.deadline import TimeUp

SCREENS = (Stage.IBP, Stage.CROWN)
#: alpha-CROWN starts no step after this share of the time, and bounds that follow an l2 ball start none after twice
#: that share, so that some is left to branch and bound.
ALPHA_SHARE = 0.25
#: The search before branch and bound starts no query after this share of the time that is left.
HUNT_SHARE = 0.1


@runtime_checkable
class CompleteSettings(Protocol):
    """The settings of the method; see ``verifiers.methods.complete``."""

    @property
    def time_limit(self) -> float: ...
    @property
    def iterations(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def engine(self) -> str: ...


def undecided(x: Float[Tensor, "batch *shape"], **more: np.ndarray) -> Columns:
    """Return the columns of a batch whose rows are PENDING until they are decided."""
    rows = len(x)
    return {
        "status": np.full(rows, Status.PENDING.value, "uint8"),
        "radius": np.zeros(rows),
        "margin": np.full(rows, np.nan),
        "rounding": np.full(rows, np.nan),
        "stage": np.zeros(rows, "uint8"),
        "domains": np.zeros(rows, "int64"),
        "distance": np.full(rows, np.nan),
        "counterexample": np.full(x.shape, np.nan, "float32"),
        **more,
    }


@dataclass
class _Answers:
    """The columns of a batch under verification; rows are PENDING until they are decided."""

    columns: Columns
    seconds: Float[np.ndarray, "batch stages"]

    @classmethod
    def blank(cls, x: Float[Tensor, "batch *shape"]) -> "_Answers":
        return cls(undecided(x), np.zeros((len(x), len(Stage))))

    @property
    def decided(self) -> Int[np.ndarray, " rows"]:
        """The positions of the rows that have an answer."""
        return np.flatnonzero(self.columns["status"] != Status.PENDING)

    def of(self, rows: Int[np.ndarray, " rows"]) -> Answer:
        """Return all columns of some rows."""
        each = {stage.column: self.seconds[:, stage - 1] for stage in Stage}
        columns = {**self.columns, **each, "seconds": self.seconds.sum(1)}
        return Answer(rows, {name: values[rows] for name, values in columns.items()})

    def spend(self, rows: Int[Tensor, " some"], stage: Stage, started: float) -> None:
        """Charge the time since the start of a stage to its rows, in equal shares."""
        self.seconds[rows.cpu().numpy(), stage - 1] = (time.perf_counter() - started) / len(rows)

    def decide(self, row: int, stage: Stage, status: Status, eps: float, margin: float) -> None:
        """Give a row its answer."""
        self.columns["status"][row], self.columns["stage"][row] = status, stage
        self.columns["margin"][row] = margin
        self.columns["radius"][row] = eps if status is Status.CERTIFIED else 0.0


@dataclass
class Complete:
    """Complete verification prepared for one network."""

    program: Program
    screen: Engine
    native: Native
    settings: CompleteSettings
    question: Question
    batch_size: int = 32
    full: bool = False  # the parts of a sample would have filled the memory

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: CompleteSettings
    ) -> "Complete":
        """Build the graphs and attack their bounds on the samples.

        Raises:
            Unsupported: the native engine does not support the network.
            Contradiction: a point of the ball breaks a bound.
        """
        name = "native" if settings.engine == "auto" else settings.engine
        screen, _ = build(program, samples, name, question, method="crown")
        native = screen if isinstance(screen, Native) else native_engine(program, samples, question.arithmetic)
        if native is not screen:
            attack_bounds(native, samples, question.eps.value, norm=question.norm, method="crown")
        return cls(program, screen, native, settings, question)

    @property
    def notes(self) -> Mapping[str, str]:
        """The engine of the cheap bounds, and what memory kept open."""
        full = "branch and bound ended on some samples before open parts of the ball filled the memory"
        return {"engine": self.screen.name, **({"reason": full} if self.full else {})}

    def at(self, eps: Epsilon) -> "Complete":
        """Return the same certifier for another radius."""
        return replace(self, question=replace(self.question, eps=eps))

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Answer the samples that the cheap stages decide, then one sample after another."""
        answers = _Answers.blank(batch.x)
        with suppress(TimeUp):
            self._screened(answers, batch)
        left = np.setdiff1d(batch.rows, answers.decided)
        if len(answers.decided):
            yield answers.of(answers.decided)
        for row in left.tolist():
            self._within_time(answers, row, batch)
            yield answers.of(np.array([row]))

    def _within_time(self, answers: _Answers, row: int, batch: Batch) -> None:
        """Finish a row; one that no stage ends within its time is a TIMEOUT with the bound that is known."""
        started, spent = deadline.now(), float(answers.seconds[row].sum())
        try:
            with deadline.within(self.settings.time_limit - spent):
                deadline.check()
                self._finish(answers, row, batch)
        except TimeUp:
            stage = Stage.ALPHA_CROWN
            answers.seconds[row, stage - 1] = deadline.now() - started
            answers.decide(row, stage, Status.TIMEOUT, 0.0, float(answers.columns["margin"][row]))

    def _screened(self, answers: _Answers, batch: Batch) -> None:
        """Run attack, IBP and CROWN on the whole batch."""
        left = torch.arange(len(batch), device=batch.x.device)
        started = time.perf_counter()
        found = self._attack()(self.program.module, batch.x, batch.predicted, batch.indices.tolist())
        answers.spend(left, Stage.ATTACK, started)
        for row in found.broken.nonzero().flatten().tolist():
            answers.decide(row, Stage.ATTACK, Status.FALSIFIED, 0.0, float(found.margin[row]))
        broken = found.broken.cpu().numpy()
        answers.columns["distance"][broken] = found.distance.cpu().numpy()[broken]
        answers.columns["counterexample"][broken] = found.point.float().cpu().numpy()[broken]
        left = left[~found.broken]
        for stage in SCREENS:
            if not len(left):
                break
            started = time.perf_counter()
            least, rounding = self._margins(batch.take(left), stage)
            answers.spend(left, stage, started)
            for row in (least > 0).nonzero().flatten().tolist():
                answers.decide(int(left[row]), stage, Status.CERTIFIED, self.question.eps.value, float(least[row]))
            answers.columns["margin"][left.cpu().numpy()] = least.cpu().numpy()
            answers.columns["rounding"][left.cpu().numpy()] = rounding.cpu().numpy()
            left = left[~(least > 0)]

    def _attack(self) -> Attack:
        question, settings = self.question, self.settings
        return Attack(question.eps.value, question.norm, question.seed, settings.steps, settings.restarts)

    def _margins(self, batch: Batch, stage: Stage) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Bound the least margin over the ball by a method; return the bound and the rounding that it covers."""
        balls = Balls.around(batch.x, self.question.eps.value, self.question.norm)
        return margins_of(self.screen, balls, (batch.predicted, batch.classes), stage.title).least()

    def _finish(self, answers: _Answers, row: int, batch: Batch) -> None:
        """Run alpha-CROWN, then branch and bound, within the rest of the sample's time."""
        one, eps, started = batch.take(torch.tensor([row])), self.question.eps.value, time.monotonic()
        left = deadline.left()
        bounds = self.native.bounds(Balls.around(one.x.double(), eps, self.question.norm))
        specification, others = _open_margins(bounds, one)
        planes = alpha.optimized(bounds, specification, self.settings.iterations, started + ALPHA_SHARE * left)
        if self.question.norm is Norm.L2 and not bool((planes.bound > 0).all()):
            sdp.cut_at_box(bounds)
            until = started + 2 * ALPHA_SHARE * left
            followed = sdp.followed_ball(bounds, specification, self.settings.iterations, until, goal=0.0)
            planes = better(planes, followed)
        proved = planes.bound[0].where(planes.bound[0].isfinite(), -math.inf)  # nan and inf prove nothing
        answers.seconds[row, Stage.ALPHA_CROWN - 1] = time.monotonic() - started
        least = min(float(proved.amin()), others)
        answers.columns["rounding"][row] = float(planes.rounding[0, proved.argmin()])
        if bounds.overflows:  # no splitting helps
            answers.decide(row, Stage.ALPHA_CROWN, Status.NOT_CERTIFIED, eps, least)
            return
        if least > 0:
            answers.decide(row, Stage.ALPHA_CROWN, Status.CERTIFIED, eps, least)
            return
        begun = time.monotonic()
        point = self._hunted(one, begun + HUNT_SHARE * (started + left - begun))
        if point is not None:
            answers.seconds[row, Stage.BRANCH_AND_BOUND - 1] = time.monotonic() - begun
            self._keep(answers, row, one, point)
            return
        until, position = started + left, codes_of(bounds.graph)
        if position is not None:
            end = CodeSearch(bounds, specification, position, until, lambda z: self._broken(z, one)).run()
        else:
            end = BranchAndBound(
                bounds, specification, proved, 0.0, deadline=until, broken=lambda z: self._broken(z, one)
            ).run()
        answers.seconds[row, Stage.BRANCH_AND_BOUND - 1] = time.monotonic() - begun
        answers.columns["domains"][row] = end.domains
        if end.point is not None:
            self._keep(answers, row, one, end.point.float())
            return
        ends = {Status.CERTIFIED: end.finished, Status.OUT_OF_MEMORY: end.full, Status.TIMEOUT: end.late}
        status = next((status for status, true in ends.items() if true), Status.NOT_CERTIFIED)
        self.full |= status is Status.OUT_OF_MEMORY
        answers.decide(row, Stage.BRANCH_AND_BOUND, status, eps, min(end.bound, others))

    def _hunted(self, one: Batch, deadline: float) -> Float[Tensor, "1 *shape"] | None:
        """Search once more, without gradients from the image, before the ball is split."""
        balls = Balls.around(one.x, self.question.eps.value, self.question.norm)
        victims = Victims(self.program.module, balls, one.predicted, one.indices.tolist(), self.question.seed)
        point = Hunt(deadline=deadline).run(victims).point
        return point if bool(self._broken(point, one)) else None

    def _keep(self, answers: _Answers, row: int, one: Batch, point: Tensor) -> None:
        """Store a counterexample that the last stage found."""
        with torch.no_grad():
            margin = float(margins(self.program.module(point), one.predicted))
        answers.decide(row, Stage.BRANCH_AND_BOUND, Status.FALSIFIED, 0.0, margin)
        answers.columns["distance"][row] = float(norms(point.double() - one.x.double(), self.question.norm))
        answers.columns["counterexample"][row] = point[0].cpu().numpy()

    def _broken(self, points: Tensor, one: Batch) -> Tensor:
        """Return which points, rounded to float32, are inside the ball and get another class."""
        rounded = points.float()
        inside = norms(rounded.double() - one.x.double(), self.question.norm) <= self.question.eps.value
        with torch.no_grad():
            return (margins(self.program.module(rounded), one.predicted.expand(len(points))) < 0) & inside


def _open_margins(bounds: Bounds, one: Batch) -> tuple[Float[Tensor, "1 rows classes"], float]:
    """Build the rows of the margins that are not proved yet, and return the least bound of the others.

    Of few classes these are all rows, and none is bounded here.
    """
    if one.classes <= MANY:
        return margin_specification(one.predicted, one.classes, torch.float64), math.inf
    with torch.no_grad():
        bounds.propagate(refine=True)
        bound = least_margins(bounds, one.predicted).bound[0]
        bound = bound.where(bound.isfinite(), -math.inf)  # nan and inf prove nothing
    bound[one.predicted] = math.inf
    wanted = bound <= 0
    wanted[bound.argmin()] = True
    rivals = wanted.nonzero()[:, 0]
    rows = some_margins(one.predicted.expand(len(rivals)), rivals, one.classes, torch.float64)
    return rows[None], float(bound[~wanted].amin())
