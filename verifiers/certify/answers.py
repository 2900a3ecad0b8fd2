"""Answer some rows of a method: settle what needs no certifier, complete its answers, and check them by attack."""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from verifiers.certify.attacked import refuted
from verifiers.core.columns import COMMON_COLUMNS, Columns
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.status import About, Guarantee, Status
from verifiers.core.table import counted
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.methods.registry import RELATIONAL
from verifiers.runtime.certifier import Answer, Batch, Certifier
from verifiers.runtime.deadline import TimeUp, now, within
from verifiers.runtime.samples import Samples

Rows = Int[np.ndarray, " rows"]


@runtime_checkable
class Store(Protocol):
    """Where rows are written, and what earlier methods wrote about them; see ``CertificateFile``."""

    def counterexamples(self, rows: np.ndarray) -> list[np.ndarray]: ...

    def attack_distance(self, rows: np.ndarray, skip: Collection[str] = ()) -> np.ndarray: ...

    def largest_radius(self, method: str) -> float: ...

    def write(self, method: str, rows: np.ndarray, columns: Columns) -> None: ...


def same(status: Status, rows: int) -> Columns:
    """Build the columns of rows that are given one status without a certifier."""
    return {
        "status": np.full(rows, status.value, "uint8"),
        "radius": np.zeros(rows),
        "margin": np.full(rows, np.nan),
    }


class Asked:
    """The samples of a run in batches for certifiers; margins are computed once, for all methods.

    Attributes:
        margin: the smallest margin at each image; nan where none was computed.
    """

    def __init__(self, program: Program, samples: Samples) -> None:
        self._program, self._samples = program, samples
        self.margin = np.full(len(samples.labels), np.nan)

    def batch(self, rows: Rows) -> Batch:
        """Build the batch of some rows."""
        samples, device = self._samples, self._program.device
        x = samples.batch(rows, device)
        predicted = samples.predicted[rows].to(device)
        return Batch(x, predicted, samples.indices[rows], samples.classes, lambda: self._clean(rows, x, predicted))

    def _clean(self, rows: Rows, x: Tensor, predicted: Tensor) -> Tensor:
        new = np.isnan(self.margin[rows])
        if new.any():
            chosen = torch.as_tensor(new, device=x.device)
            with torch.no_grad():
                logits = self._program.module(x[chosen])
            self.margin[rows[new]] = margins(logits, predicted[chosen]).double().cpu().numpy()
        return torch.as_tensor(self.margin[rows], device=x.device)


@dataclass
class Answers:
    """Answer rows of one method on one network.

    Attributes:
        refused: notes and reports a failure that the rows show.
        spent: seconds of each row's time limit that the preparation took.
    """

    method: Method
    program: Program
    question: Question
    samples: Samples
    asked: Asked
    store: Store
    reporter: Reporter
    refused: Callable[[Status, str], object]
    spent: float = 0.0

    @property
    def kind(self) -> str:
        """The method's name."""
        return self.method.kind

    @property
    def smoothed(self) -> bool:
        """True if the method makes its own predictions, for every sample."""
        return self.method.about is About.SMOOTHED

    @property
    def _deployed(self) -> bool:
        """True if radii are those of the network in float32."""
        return self.question.arithmetic.deployed

    @property
    def wanted(self) -> Tensor:
        """Mark the samples that the method answers: as a rule, those that the network classifies correctly."""
        if self.smoothed:
            return torch.ones_like(self.samples.finite)
        return self.samples.finite if self.method.relational else self.samples.correct

    def __call__(self, certifier: Certifier, rows: Rows) -> None:
        """Settle misclassified rows and rows without finite logits, and pass all others to the certifier.

        Settled rows are written with the first answer, so that a killed run leaves whole batches.
        """
        asked = self.wanted[rows].numpy()
        settled = rows[~asked]
        columns = same(Status.MISCLASSIFIED, len(settled))
        columns["status"][~self.samples.finite[settled].numpy()] = Status.ERROR
        columns["seconds"] = np.zeros(len(settled))
        answers = self._timed(certifier, rows[asked]) if asked.any() else ()
        for found, values in answers:
            self.write(*self._joined(settled, columns, found, values))
            settled = settled[:0]
        if len(settled):
            self.write(settled, columns)

    def _timed(self, certifier: Certifier, rows: Rows) -> Iterator[tuple[Rows, Columns]]:
        """Yield answers with their seconds; rows without one when the time of all is over end in TIMEOUT."""
        batch = replace(
            self.asked.batch(rows), known=lambda: self.store.counterexamples(rows), tick=self.reporter.within
        )
        open_rows, started = batch.rows, now()
        limit = len(batch) * (float(getattr(self.method, "time_limit", math.inf)) - self.spent)
        answers = chain.from_iterable(certifier(each) for each in (batch,))  # also its beginning is timed
        while True:
            try:
                with within(limit):
                    answer = next(answers, None)
            except TimeUp:
                answer = Answer(open_rows, same(Status.TIMEOUT, len(open_rows)))
            if answer is None or not len(open_rows):
                return
            elapsed = now() - started
            share = np.full(len(answer.rows), elapsed / len(answer.rows))
            own = answer.columns.get("seconds")
            open_rows, started, limit = np.setdiff1d(open_rows, answer.rows), now(), limit - elapsed
            yield rows[answer.rows], {**answer.columns, "seconds": share if own is None else np.nan_to_num(own)}

    def _joined(
        self, settled: np.ndarray, columns: Columns, rows: np.ndarray, found: Columns
    ) -> tuple[np.ndarray, Columns]:
        """Put settled rows and answered rows together, in ascending order."""
        if not len(settled):
            return rows, found
        fill = {column.name: column.fill for column in (*COMMON_COLUMNS, *self.method.columns)}
        together = np.concatenate([settled, rows])
        order = np.argsort(together)
        whole = {}
        for name, values in found.items():
            size = (len(settled), *values.shape[1:])
            first = columns[name] if name in columns else np.full(size, fill[name], values.dtype)
            whole[name] = np.concatenate([first, values])[order]
        return together[order], whole

    def write(self, rows: Rows, columns: Columns) -> None:
        """Add the common columns, enforce the rules, and write whole rows."""
        columns = self._completed(rows, columns)
        self._check_against_attack(rows, columns)
        self.store.write(self.kind, rows, columns)
        self.reporter.advance(len(rows))

    def _completed(self, rows: Rows, columns: Columns) -> Columns:
        """Add the common columns and enforce the rules: no radius without a proof, and only finite radii."""
        samples, status, radius = self.samples, columns["status"].copy(), columns["radius"]
        limit = self.store.largest_radius(self.kind)
        claims = status == Status.CERTIFIED
        status[~np.isfinite(radius)] = Status.ERROR
        status[claims & ((radius <= 0) | (self.method.guarantee is Guarantee.ESTIMATE))] = Status.ERROR
        label, correct = samples.labels[rows].numpy(), samples.correct[rows].numpy()
        predicted = columns.get("predicted", samples.predicted[rows].numpy())
        more: Columns = {}
        if self.smoothed:
            correct = predicted == label
            status[(status == Status.CERTIFIED) & ~correct] = Status.MISCLASSIFIED
            more["base"] = samples.predicted[rows].numpy()
        return {
            **columns,
            **more,
            "status": status,
            "radius": np.where(status == Status.CERTIFIED, np.minimum(radius, limit), 0.0),
            "index": samples.indices[rows].numpy(),
            "label": label,
            "predicted": predicted,
            "correct": correct.astype("uint8"),
        }

    def _attack(self, rows: Rows, columns: Columns, contradicted: np.ndarray) -> np.ndarray:
        """Attack the claimed radii on the program that is deployed, and mark the rows of those that are broken.

        Returns marks of the rows whose points break them by no more than float64's rounding.
        """
        unsure, claimed = np.zeros(len(rows), bool), np.flatnonzero((columns["radius"] > 0) & ~contradicted)
        if not len(claimed) or self.program.captured is None:
            return unsure
        batch = self.asked.batch(rows[claimed])
        if not self._deployed:  # a stored counterexample is float32's
            batch = replace(batch, known=lambda: self.store.counterexamples(rows[claimed]))
        radius = torch.as_tensor(columns["radius"][claimed], device=self.program.device)
        found = refuted(self.program, self.question, batch, radius)
        contradicted[claimed], unsure[claimed] = (each.cpu().numpy() for each in found)
        return unsure

    def _check_against_attack(self, rows: Rows, columns: Columns) -> None:
        """Turn a row whose radius contains a counterexample into an ERROR: that is a contradiction.

        Over the real numbers, a stored one counts if it is one in float64 too; a row of which float64 cannot tell is
        UNSUPPORTED.
        """
        contradicted, unsure = np.zeros((2, len(rows)), bool)
        if self.method.guarantee is Guarantee.DETERMINISTIC and not self.method.relational:
            if self._deployed:
                distance = self.store.attack_distance(rows, skip=RELATIONAL)
                contradicted = (columns["radius"] > 0) & (columns["radius"] >= distance)  # nan compares false
            unsure = self._attack(rows, columns, contradicted)
        if contradicted.any():
            columns["status"][contradicted] = Status.ERROR
            columns["radius"][contradicted] = 0.0
            told = counted(int(contradicted.sum()), "row")
            self.refused(Status.ERROR, f"{told} with a radius that contains a counterexample")
        if unsure.any():
            columns["status"][unsure] = Status.UNSUPPORTED
            columns["radius"][unsure] = 0.0
            told = counted(int(unsure.sum()), "row")
            reason = f"float64 is too coarse to check {told}; scale down the weights that cancel"
            self.refused(Status.UNSUPPORTED, reason)
        counts = np.bool_(self.method.relational) | columns["correct"].astype(bool)
        reached = counts & (columns["radius"] >= self.question.eps.value)
        columns["certified"] = reached.astype("uint8")
