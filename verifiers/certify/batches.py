"""Run one method over all samples; handles batches, statuses, time, memory, progress and writing for every method."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from verifiers.certify.answers import Answers, Asked, Rows, same
from verifiers.certify.workers import Crew, Shares
from verifiers.core.errors import Contradiction, Unsupported, one_line
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.core.table import counted
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.results.writer import CertificateFile
from verifiers.runtime.certifier import Answer, Batch, Certifier
from verifiers.runtime.deadline import TimeUp, now, within
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory
from verifiers.runtime.pool import spread
from verifiers.runtime.samples import CLEAN_BATCH, Samples, first_images


@dataclass
class Refusal:
    """A certifier that gives every row the same failure, with its reason."""

    status: Status
    reason: str
    batch_size: int = CLEAN_BATCH
    notes: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        yield Answer(batch.rows, same(self.status, len(batch)))


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

    @cached_property
    def answers(self) -> Answers:
        """Answers rows in this process."""
        given = (self.samples, self.asked, self.file, self.reporter, self._refused)
        return Answers(self.method, self.program, self.question, *given)

    def finish(self, batch_size: int | None, crew: Crew) -> None:
        """Answer all rows without an answer, by the crew if it has workers and there is more than one batch."""
        pending, total = self.file.pending(self.kind), len(self.samples.labels)
        self.reporter.start(self.kind, total, total - len(pending))
        if len(pending):
            certifier = self._prepared()
            size, notes = batch_size or certifier.batch_size, certifier.notes
            if crew.staff.alone or isinstance(certifier, Refusal) or len(pending) <= size:
                self._run_batches(certifier, pending, size)
                notes = certifier.notes
            else:
                notes = {**notes, **self._share(crew, pending, size)}
            self._note(notes)
            self._note_overflow()
            if "cross_check" in notes:
                self.reporter.inform(f"{self.kind}: {notes['cross_check']}")
        self.reporter.finish(self.kind)

    def _share(self, crew: Crew, pending: Rows, size: int) -> Mapping[str, str]:
        """Let a crew answer rows in batches; a failure that stops the method is that of all rows left."""
        shares = Shares(self.answers, self.file)
        spread(crew.begin(), shares, pending, size)
        for status, reason in shares.failures():
            self._refused(status, reason)
        if shares.stopped is not None:
            self._run_batches(self._refused(*shares.stopped), self.file.pending(self.kind), CLEAN_BATCH)
        return shares.notes

    def _prepared(self) -> Certifier:
        """Prepare the method; if that fails, return a certifier that gives every row the failure."""
        if self.question.norm not in self.method.norms:
            reason = f"{self.kind} does not handle the norm {self.question.norm}"
            return self._refused(Status.UNSUPPORTED, reason)
        rows, started = max(1, len(self.file.pending(self.kind))), now()
        limit = float(getattr(self.method, "time_limit", math.inf))
        try:
            first = first_images(self.samples, self.program.given)
            with within(limit * rows):
                certifier = self.method.prepare(self.program, first, self.question)
            self.answers.spent = (now() - started) / rows
            self.file.note(self.kind, "reason", None)  # the reason of an earlier, failed run
            self._note(certifier.notes)
            for line in self.method.preview(certifier, self.samples, self.program.device):
                self.reporter.inform(f"{self.kind}: {line}")
            return certifier
        except TimeUp:
            return self._refused(Status.TIMEOUT, f"preparation alone takes longer than {limit:g} s a sample")
        except Unsupported as error:
            return self._refused(Status.UNSUPPORTED, str(error))
        except Contradiction as error:
            return self._refused(Status.ERROR, str(error))
        except MEMORY_ERRORS as error:
            if not out_of_memory(error):
                raise
            said = one_line(error, None) if isinstance(error, MemoryError) and error.args else ""
            return self._refused(Status.OUT_OF_MEMORY, said or "not even one sample fits into memory")

    def _note(self, notes: Mapping[str, str]) -> None:
        for name, value in notes.items():
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
        lost, answers = 0, self.answers
        while len(pending):
            rows, whole = pending[:size], False
            try:
                answers(certifier, rows)
            except MEMORY_ERRORS as error:
                if not out_of_memory(error):
                    raise
                if self.program.device.type == "cuda":
                    torch.cuda.empty_cache()
                left = np.intersect1d(rows, self.file.pending(self.kind))
                if len(left) > 1:
                    size = max(1, len(left) // 2)
                elif len(left):
                    answers.write(left, {**same(Status.OUT_OF_MEMORY, 1), "seconds": np.zeros(1)})
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
