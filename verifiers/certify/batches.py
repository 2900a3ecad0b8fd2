"""Run one method over all samples; handles batches, statuses, time, memory, progress and writing for every method."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from verifiers.certify.attacked import refuted
from verifiers.core.columns import COMMON_COLUMNS, Columns
from verifiers.core.errors import Contradiction, Unsupported, one_line
from verifiers.core.quantities import Arithmetic
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.status import About, Guarantee, Status
from verifiers.core.table import counted
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.methods.registry import RELATIONAL
from verifiers.results.writer import CertificateFile
from verifiers.runtime.certifier import Answer, Batch, Certifier
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory
from verifiers.runtime.samples import CLEAN_BATCH, Samples, first_images

Rows = Int[np.ndarray, " rows"]


@dataclass
class Refusal:
    """A certifier that gives every row the same failure, with its reason."""

    status: Status
    reason: str
    batch_size: int = CLEAN_BATCH
    notes: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        yield Answer(batch.rows, _same(self.status, len(batch)))


def _same(status: Status, rows: int) -> Columns:
    return {
        "status": np.full(rows, status.value, "uint8"),
        "radius": np.zeros(rows),
        "margin": np.full(rows, np.nan),
    }


class Asked:
    """The samples of a run in batches for certifiers; margins are computed once, for all methods."""

    def __init__(self, program: Program, samples: Samples) -> None:
        self._program, self._samples = program, samples
        self._margin = np.full(len(samples.labels), np.nan)

    def batch(self, rows: Rows) -> Batch:
        """Build the batch of some rows."""
        samples, device = self._samples, self._program.device
        x = samples.batch(rows, device)
        predicted = samples.predicted[rows].to(device)
        return Batch(x, predicted, samples.indices[rows], samples.classes, lambda: self._clean(rows, x, predicted))

    def _clean(self, rows: Rows, x: Tensor, predicted: Tensor) -> Tensor:
        new = np.isnan(self._margin[rows])
        if new.any():
            chosen = torch.as_tensor(new, device=x.device)
            with torch.no_grad():
                logits = self._program.module(x[chosen])
            self._margin[rows[new]] = margins(logits, predicted[chosen]).double().cpu().numpy()
        return torch.as_tensor(self._margin[rows], device=x.device)


@dataclass
class Run:
    """One method on one network and its samples, written to one file."""

    method: Method
    program: Program
    question: Question
    samples: Samples
    asked: Asked
    file: CertificateFile
    reporter: Reporter

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
        return self.question.arithmetic is Arithmetic.FLOAT32

    @property
    def _asked(self) -> Tensor:
        """Mark the samples that the method answers: as a rule, those that the network classifies correctly."""
        if self.smoothed:
            return torch.ones_like(self.samples.finite)
        return self.samples.finite if self.method.relational else self.samples.correct

    def finish(self, batch_size: int | None) -> None:
        """Answer all rows without an answer."""
        pending, total = self.file.pending(self.kind), len(self.samples.labels)
        self.reporter.start(self.kind, total, total - len(pending))
        if len(pending):
            certifier = self._prepared()
            self._run_batches(certifier, pending, batch_size or certifier.batch_size)
            self._note(certifier)
            self._note_overflow()
            if "cross_check" in certifier.notes:
                self.reporter.inform(f"{self.kind}: {certifier.notes['cross_check']}")
        self.reporter.finish(self.kind)

    def _prepared(self) -> Certifier:
        """Prepare the method; if that fails, return a certifier that gives every row the failure."""
        if self.question.norm not in self.method.norms:
            reason = f"{self.kind} does not handle the norm {self.question.norm}"
            return self._refused(Status.UNSUPPORTED, reason)
        try:
            first = first_images(self.samples, self.program.given)
            certifier = self.method.prepare(self.program, first, self.question)
            self.file.note(self.kind, "reason", None)  # the reason of an earlier, failed run
            self._note(certifier)
            for line in self.method.preview(certifier, self.samples, self.program.device):
                self.reporter.inform(f"{self.kind}: {line}")
            return certifier
        except Unsupported as error:
            return self._refused(Status.UNSUPPORTED, str(error))
        except Contradiction as error:
            return self._refused(Status.ERROR, str(error))
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            said = one_line(error, None) if isinstance(error, MemoryError) and error.args else ""
            return self._refused(Status.OUT_OF_MEMORY, said or "not even one sample fits into memory")

    def _note(self, certifier: Certifier) -> None:
        for name, value in certifier.notes.items():
            self.file.note(self.kind, name, value)

    def _note_overflow(self) -> None:
        """Note on how many balls nothing can be proved because values may overflow."""
        over = self.file.overflows(self.kind)
        said = (
            f"values may overflow in float32 on the balls at eps of {counted(over, 'sample')}: nothing is proved there"
        )
        self.file.note(self.kind, "overflow", said if over else None)
        if over:
            self.reporter.warn(f"{self.kind}: {said}")

    def _refused(self, status: Status, reason: str) -> Refusal:
        self.file.note(self.kind, "reason", reason)
        self.reporter.warn(f"{self.kind}: {status.name}: {reason}")
        return Refusal(status, reason)

    def _run_batches(self, certifier: Certifier, pending: Rows, size: int) -> None:
        """Run batch by batch; halve a batch that does not fit into memory, and record a single row that does not."""
        lost = 0
        while len(pending):
            rows, whole = pending[:size], False
            try:
                self._answer(certifier, rows)
            except MEMORY_ERRORS as error:
                if not out_of_memory(error):
                    raise
                if self.program.device.type == "cuda":
                    torch.cuda.empty_cache()
                left = np.intersect1d(rows, self.file.pending(self.kind))
                if len(left) > 1:
                    size = max(1, len(left) // 2)
                elif len(left):
                    self._write(left, {**_same(Status.OUT_OF_MEMORY, 1), "seconds": np.zeros(1)})
                    lost += 1
            except (Unsupported, Contradiction) as error:
                status = Status.UNSUPPORTED if isinstance(error, Unsupported) else Status.ERROR
                certifier = self._refused(status, str(error))
            else:
                whole = True
            pending = self.file.pending(self.kind)
            if whole and np.isin(rows, pending).any():
                raise RuntimeError(f"the certifier of {self.kind} gave some of {len(rows)} rows no answer")
        if lost:
            self._refused(Status.OUT_OF_MEMORY, f"{counted(lost, 'sample')} did not fit into memory, even alone")

    def _answer(self, certifier: Certifier, rows: Rows) -> None:
        """Settle misclassified rows and rows without finite logits, and pass all others to the certifier.

        Settled rows are written with the first answer, so that a killed run leaves whole batches.
        """
        asked = self._asked[rows].numpy()
        settled = rows[~asked]
        columns = _same(Status.MISCLASSIFIED, len(settled))
        columns["status"][~self.samples.finite[settled].numpy()] = Status.ERROR
        columns["seconds"] = np.zeros(len(settled))
        if asked.any():
            started = time.perf_counter()
            batch = replace(
                self.asked.batch(rows[asked]),
                known=lambda: self.file.counterexamples(rows[asked]),
                tick=self.reporter.within,
            )
            for answer in certifier(batch):
                share = np.full(len(answer.rows), (time.perf_counter() - started) / len(answer.rows))
                own = answer.columns.get("seconds")
                found = {**answer.columns, "seconds": share if own is None else np.nan_to_num(own)}
                self._write(*self._joined(settled, columns, rows[asked][answer.rows], found))
                settled, started = settled[:0], time.perf_counter()
        if len(settled):
            self._write(settled, columns)

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

    def _write(self, rows: Rows, columns: Columns) -> None:
        """Add the common columns, enforce the rules, and write whole rows."""
        columns = self._completed(rows, columns)
        self._check_against_attack(rows, columns)
        self.file.write(self.kind, rows, columns)
        self.reporter.advance(len(rows))

    def _completed(self, rows: Rows, columns: Columns) -> Columns:
        """Add the common columns and enforce the rules: no radius without a proof, and only finite radii."""
        samples, status, radius = self.samples, columns["status"].copy(), columns["radius"]
        limit = self.file.largest_radius(self.kind)
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
            batch = replace(batch, known=lambda: self.file.counterexamples(rows[claimed]))
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
                distance = self.file.attack_distance(rows, skip=RELATIONAL)
                contradicted = (columns["radius"] > 0) & (columns["radius"] >= distance)  # nan compares false
            unsure = self._attack(rows, columns, contradicted)
        if contradicted.any():
            columns["status"][contradicted] = Status.ERROR
            columns["radius"][contradicted] = 0.0
            told = counted(int(contradicted.sum()), "row")
            self._refused(Status.ERROR, f"{told} with a radius that contains a counterexample")
        if unsure.any():
            columns["status"][unsure] = Status.UNSUPPORTED
            columns["radius"][unsure] = 0.0
            told = counted(int(unsure.sum()), "row")
            reason = f"float64 is too coarse to check {told}; scale down the weights that cancel"
            self._refused(Status.UNSUPPORTED, reason)
        counts = np.bool_(self.method.relational) | columns["correct"].astype(bool)
        reached = counts & (columns["radius"] >= self.question.eps.value)
        columns["certified"] = reached.astype("uint8")
