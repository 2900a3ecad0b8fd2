"""The certifier of ``match``: prove that two networks are in a relation on a ball, or find a point where they are not.

The image and an attack come first, then CROWN on both networks together, for whole batches. The samples that are left
are decided one at a time: ``PairSearch``.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.complete import undecided
from verifiers.bound_propagation.engines import native_engine
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.pair_search import PairSearch
from verifiers.bound_propagation.relations import least_threshold, screened, screening_rows, violation
from verifiers.core.question import Question
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls, norms
from verifiers.geometry.disagreement import PairAttack
from verifiers.graph.program import Program
from verifiers.results.reader import counterexamples
from verifiers.results.summaries.match import Stage
from verifiers.runtime.certifier import Answer, Batch
from verifiers.runtime.deadline import TimeUp, within

#: The share of the samples' time that the attack may take.
ATTACK_SHARE = 0.5
#: Bisection of the least threshold ends when its bracket is this share of its upper end, or after this many steps.
CLOSE_ENOUGH, HALVINGS = 0.02, 10


@runtime_checkable
class MatchSettings(Protocol):
    """The settings of the method; see ``verifiers.methods.match``."""

    @property
    def time_limit(self) -> float: ...
    @property
    def iterations(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def bisect(self) -> bool: ...
    @property
    def points(self) -> tuple[str, ...]: ...
    @property
    def relation(self) -> Relation: ...


class _Rows:
    """The columns of a batch under decision; rows are PENDING until they are decided."""

    def __init__(self, x: Float[Tensor, "batch *shape"]) -> None:
        rows = len(x)
        self.seconds = np.zeros(rows)
        self.columns = undecided(
            x,
            student_class=np.full(rows, -1, "int64"),
            teacher_class=np.full(rows, -1, "int64"),
            violation=np.full(rows, np.nan),
            least=np.full(rows, np.nan),
        )

    @property
    def open(self) -> Int[Tensor, " rows"]:
        """The positions of the rows without an answer."""
        return torch.from_numpy(np.flatnonzero(self.columns["status"] == Status.PENDING))

    def of(self, rows: np.ndarray) -> Answer:
        """Return all columns of some rows."""
        columns = {**self.columns, "seconds": self.seconds}
        return Answer(rows, {name: values[rows] for name, values in columns.items()})

    def spend(self, rows: Int[Tensor, " some"], started: float) -> None:
        """Charge the time since the start to rows, in equal shares."""
        self.seconds[rows.numpy()] += (time.monotonic() - started) / max(1, len(rows))

    def set(self, row: int, **values: int | float) -> None:
        """Set some columns of a row."""
        for name, value in values.items():
            self.columns[name][row] = value


@dataclass
class MatchCertifier:
    """The method prepared for a pair of networks."""

    program: Program
    teacher: Program
    engine: JointEngine
    alone: tuple[Native, Native]
    settings: MatchSettings
    question: Question
    batch_size: int = 32

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: MatchSettings
    ) -> "MatchCertifier":
        """Build the graphs of each network and of both, and attack their bounds on the samples.

        Raises:
            Unsupported: there is no teacher, or a network cannot be captured.
            Contradiction: a point of the ball breaks a bound.
        """
        engine, teacher = JointEngine.prepare(program, samples, question), question.teacher
        assert teacher is not None
        alone = tuple(native_engine(each, samples, question.arithmetic) for each in (program, teacher))
        return cls(program, teacher, engine, (alone[0], alone[1]), settings, question)

    @property
    def notes(self) -> Mapping[str, str]:
        """The engine and its graphs."""
        return self.engine.notes

    @property
    def _attack(self) -> PairAttack:
        question, settings, relation = self.question, self.settings, self.settings.relation
        return PairAttack(
            self.program.module,
            self.teacher.module,
            partial(violation, relation),
            question.eps.value,
            question.norm,
            question.seed,
            settings.steps,
            settings.restarts,
            follow=relation.of_classes,
        )

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Answer the samples that the attack and CROWN decide, then one sample after another."""
        rows, started = _Rows(batch.x), time.monotonic()
        with torch.no_grad():
            c = self.teacher.module(batch.x).argmax(1)
        self._attacked(rows, batch, c)
        rows.spend(torch.arange(len(batch)), started)
        asked = torch.arange(len(batch)) if self.settings.bisect else rows.open
        try:
            found = self._screened(rows, batch.take(asked), c[asked], asked)
        except TimeUp:
            rows.columns["status"][rows.open.numpy()] = Status.TIMEOUT
            self._classes(rows, batch, batch.rows)
            yield rows.of(batch.rows)
            return
        bounds = dict(zip(asked.tolist(), found, strict=True))
        ready = np.setdiff1d(batch.rows, asked.numpy() if self.settings.bisect else rows.open.numpy())
        if len(ready):
            self._classes(rows, batch, ready)
            yield rows.of(ready)
        for row in np.setdiff1d(batch.rows, ready).tolist():
            if rows.columns["status"][row] == Status.PENDING:
                self._within_time(rows, row, batch, c, bounds[row])
            if self.settings.bisect:
                with suppress(TimeUp), within(self.settings.time_limit):
                    self._bisect(rows, row, batch, c, bounds[row])
            self._classes(rows, batch, np.array([row]))
            yield rows.of(np.array([row]))

    def _attacked(self, rows: _Rows, batch: Batch, c: Int[Tensor, " batch"]) -> None:
        """Try the images, then attack those where the relation holds."""
        attack = self._attack
        for row in (attack.at(batch.x, c) > 0).nonzero().flatten().tolist():
            if (value := attack.alone(batch.x[row], c[row])) > 0:
                self._refute(rows, row, batch, Stage.IMAGE, batch.x[row : row + 1], value)
        left = rows.open
        if not len(left):
            return
        some = batch.take(left)
        others = (counterexamples(path, some.indices.numpy(), tuple(some.x.shape[1:])) for path in self.settings.points)
        stored = [torch.from_numpy(images).to(some.x) for images in (*some.known(), *chain.from_iterable(others))]
        limit = time.monotonic() + ATTACK_SHARE * len(some) * self.settings.time_limit
        found = replace(attack, deadline=limit)(some.x, some.indices.tolist(), stored)
        for i in found.found.nonzero().flatten().tolist():
            self._refute(rows, int(left[i]), batch, Stage.ATTACK, found.point[i : i + 1], float(found.violation[i]))

    def _refute(self, rows: _Rows, row: int, batch: Batch, stage: Stage, point: Tensor, value: float) -> None:
        distance = float(norms(point.double() - batch.x[row : row + 1].double(), self.question.norm)[0])
        rows.set(row, status=Status.FALSIFIED, stage=stage, margin=-value, violation=value, distance=distance)
        rows.columns["counterexample"][row] = point[0].cpu().numpy()

    def _screened(
        self, rows: _Rows, batch: Batch, c: Int[Tensor, " batch"], asked: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch rows"]:
        """Bound samples by CROWN; return the bounds of the rows of ``screening_rows``, and decide open samples."""
        relation, started = self.settings.relation, time.monotonic()
        wanted = screening_rows(relation, c, batch.classes)
        if not len(batch):
            return wanted[:, :, 0]
        planes = self.engine.ask(Balls.around(batch.x, self.question.eps.value, self.question.norm), wanted, "crown")
        margin, rounding = screened(relation, planes.bound), planes.rounding.amax(1)
        for row, value, off in zip(asked.tolist(), margin.tolist(), rounding.tolist(), strict=True):
            rows.set(row, rounding=off)
            if rows.columns["status"][row] == Status.PENDING:
                rows.set(row, margin=value, stage=Stage.CROWN)
                if value > 0:
                    rows.set(row, status=Status.CERTIFIED, radius=self.question.eps.value)
        rows.spend(asked, started)
        return planes.bound

    def _search(self, batch: Batch, row: int, c: Int[Tensor, " batch"]) -> PairSearch:
        x = batch.x[row : row + 1]
        return PairSearch(self.engine, self.alone, self._attack, x, c[row : row + 1], self.settings.iterations)

    def _within_time(self, rows: _Rows, row: int, batch: Batch, c: Int[Tensor, " batch"], bounds: Tensor) -> None:
        """Decide one sample; one that is not decided within its time is a TIMEOUT with CROWN's bound."""
        started = time.monotonic()
        try:
            with within(self.settings.time_limit - float(rows.seconds[row])):
                self._finish(rows, row, batch, c, bounds)
        except TimeUp:
            rows.set(row, status=Status.TIMEOUT)
            rows.spend(torch.tensor([row]), started)

    def _finish(self, rows: _Rows, row: int, batch: Batch, c: Int[Tensor, " batch"], bounds: Tensor) -> None:
        """Decide one sample within the rest of its time."""
        started = time.monotonic()
        deadline = started + max(0.0, self.settings.time_limit - float(rows.seconds[row]))
        end = self._search(batch, row, c).decide(self.settings.relation, bounds, deadline)
        rows.set(row, stage=end.stage, domains=end.parts)
        if end.point is not None:
            self._refute(rows, row, batch, end.stage, end.point, end.violation)
        else:
            ends = {Status.CERTIFIED: end.proved, Status.OUT_OF_MEMORY: end.full, Status.TIMEOUT: end.late}
            status = next((status for status, true in ends.items() if true), Status.NOT_CERTIFIED)
            rows.set(row, status=status, radius=self.question.eps.value * end.proved)
            if end.proved or not np.isnan(end.bound):
                rows.set(row, margin=end.bound if end.proved else min(end.bound, 0.0))
        rows.spend(torch.tensor([row]), started)

    def _bisect(self, rows: _Rows, row: int, batch: Batch, c: Int[Tensor, " batch"], bounds: Tensor) -> None:
        """Bisect the least threshold that is proved for a sample; every step decides, within one more time limit."""
        relation, started = self.settings.relation, time.monotonic()
        if relation.kind is Property.TRANSFER:
            return
        low, high = 0.0, float(least_threshold(relation, bounds[None])[0])
        if rows.columns["status"][row] == Status.CERTIFIED:
            high = min(high, relation.threshold)
        if rows.columns["status"][row] == Status.FALSIFIED:
            low = relation.threshold + float(rows.columns["violation"][row])
        search, deadline = self._search(batch, row, c), started + self.settings.time_limit
        for _ in range(HALVINGS):
            if not low < high * (1 - CLOSE_ENOUGH) or not np.isfinite(high) or time.monotonic() > deadline:
                break
            middle = (low + high) / 2
            end = search.decide(relation.at(middle), bounds, min(deadline, time.monotonic() + (deadline - started) / 4))
            high = middle if end.proved else high
            low = low if end.proved else middle + (end.violation if end.point is not None else 0.0)
        rows.set(row, least=high)
        rows.spend(torch.tensor([row]), started)

    def _classes(self, rows: _Rows, batch: Batch, done: np.ndarray) -> None:
        """Note both classes at the stored points, and at the images without one, each image alone."""
        for row in done.tolist():
            point = torch.from_numpy(rows.columns["counterexample"][row]).to(batch.x)
            image = batch.x[row] if bool(point.isnan().any()) else point
            with torch.no_grad():
                student, teacher = (int(m(image[None]).argmax(1)) for m in (self.program.module, self.teacher.module))
            rows.set(row, student_class=student, teacher_class=teacher)
