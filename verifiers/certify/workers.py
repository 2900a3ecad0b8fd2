"""Let worker processes answer batches of a certification: each has the networks, one process writes."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifiers.certify.answers import Answers, Asked, Rows, same
from verifiers.core.columns import Columns
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.memory import reuse_memory
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.core.table import counted
from verifiers.graph.portable import Portable
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.methods.registry import RELATIONAL
from verifiers.results.writer import CertificateFile
from verifiers.runtime.certifier import Certifier
from verifiers.runtime.modes import trusted_arithmetic
from verifiers.runtime.pool import End, Left, Pool, Send
from verifiers.runtime.samples import Samples
from verifiers.runtime.staff import Staff


@dataclass(frozen=True)
class Task:
    """Batches of one method.

    Attributes:
        kind: the method's name.
        images: of all rows; ``labels`` to ``margin`` have one value for each.
        known: what ``counterexamples`` of the file returns for the rows.
        distance: what its ``attack_distance`` returns, without relational methods.
        largest: its ``largest_radius``.
        spent: seconds of each row's time limit that are gone.
        size: rows that are answered at a time.
    """

    kind: str
    images: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    finite: np.ndarray
    indices: np.ndarray
    margin: np.ndarray
    classes: int
    known: Sequence[np.ndarray]
    distance: np.ndarray
    largest: float
    size: int
    spent: float = 0.0

    def samples(self) -> Samples:
        """The rows as the samples of a run."""
        images, labels, predicted, finite, indices = (
            torch.from_numpy(values) for values in (self.images, self.labels, self.predicted, self.finite, self.indices)
        )
        return Samples(images, labels, predicted, finite, indices, "", self.classes)


# Parts of an answer


@dataclass(frozen=True)
class Wrote:
    """Complete rows, by their places in the batch."""

    rows: Rows
    columns: Columns


@dataclass(frozen=True)
class Failed:
    """A failure to note; ``final`` if it is that of all rows left."""

    status: Status
    reason: str
    final: bool


@dataclass(frozen=True)
class Within:
    """Where a batch is."""

    settled: int
    text: str


@dataclass(frozen=True)
class Ended:
    """What a batch leaves: the margins at its images, and the certifier's notes."""

    margin: np.ndarray
    notes: Mapping[str, str]


# In the worker


@dataclass(frozen=True)
class Certification:
    """The job: the networks, the question and the methods."""

    program: Portable
    teacher: Portable | None
    question: Question
    methods: tuple[Method, ...]
    first: Tensor
    threads: int

    def open(self) -> Callable[[Task, Send], None]:
        """Build the programs; a method is prepared when its first batch comes."""
        torch.set_num_threads(self.threads)
        reuse_memory()
        stack = ExitStack()  # until the process ends
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(trusted_arithmetic())
        program, teacher = self.program.program(), None if self.teacher is None else self.teacher.program()
        question = replace(self.question, teacher=teacher)
        methods = {method.kind: method for method in self.methods}
        return _Answering(program, question, methods, self.first.to(program.device), stack)


@dataclass
class _Answering:
    program: Program
    question: Question
    methods: Mapping[str, Method]
    first: Tensor
    stack: ExitStack
    certifiers: dict[str, Certifier] = field(default_factory=dict)

    def __call__(self, task: Task, send: Send) -> None:
        """Answer batch by batch; a failure of the method is sent, and memory errors are raised."""
        samples, method = task.samples(), self.methods[task.kind]
        asked = Asked(self.program, samples)
        asked.margin[:] = task.margin
        answers = Answers(
            method,
            self.program,
            self.question,
            samples,
            asked,
            _Sender(task, send),
            _Reporting(send),
            lambda status, reason: send(Failed(status, reason, final=False)),
            task.spent,
        )
        try:
            if task.kind not in self.certifiers:
                self.certifiers[task.kind] = method.prepare(self.program, self.first, self.question)
            certifier = self.certifiers[task.kind]
            for first in range(0, len(task.labels), task.size):
                answers(certifier, np.arange(first, min(first + task.size, len(task.labels))))
        except (Unsupported, Contradiction) as error:
            status = Status.UNSUPPORTED if isinstance(error, Unsupported) else Status.ERROR
            send(Failed(status, str(error), final=True))
        else:
            send(Ended(asked.margin, dict(certifier.notes)))


@dataclass
class _Sender:
    """The store of a batch: knows what the file has of it, and sends what is written."""

    task: Task
    send: Send

    def counterexamples(self, rows: np.ndarray) -> list[np.ndarray]:
        return [images[rows] for images in self.task.known]

    def attack_distance(self, rows: np.ndarray, skip: Collection[str] = ()) -> np.ndarray:
        return self.task.distance[rows]

    def largest_radius(self, method: str) -> float:
        return self.task.largest

    def write(self, method: str, rows: np.ndarray, columns: Columns) -> None:
        self.send(Wrote(rows, columns))


class _Reporting(Reporter):
    """Sends where the batch is; rows are counted where they are written."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def within(self, settled: int, text: str) -> None:
        self._send(Within(settled, text))


# In the process that writes


@dataclass
class Shares:
    """The batches of one method that workers answer; rows are written as they come.

    Attributes:
        notes: of the certifiers; where they differ, of the first rows.
        stopped: the failure that stopped the method.
    """

    answers: Answers
    file: CertificateFile
    stopped: tuple[Status, str] | None = None
    _notes: dict[str, tuple[int, str]] = field(default_factory=dict)
    _settled: dict[int, int] = field(default_factory=dict)
    _lost: list[tuple[Status, int, str]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """The method's name."""
        return self.answers.kind

    @property
    def notes(self) -> dict[str, str]:
        """The certifiers' notes."""
        return {name: value for name, (_, value) in self._notes.items()}

    def task(self, rows: Rows, size: int) -> Task:
        """Build the task of some rows."""
        samples, file = self.answers.samples, self.file
        return Task(
            kind=self.kind,
            images=samples.batch(rows, torch.device("cpu")).numpy(),
            labels=samples.labels[rows].numpy(),
            predicted=samples.predicted[rows].numpy(),
            finite=samples.finite[rows].numpy(),
            indices=samples.indices[rows].numpy(),
            margin=self.answers.asked.margin[rows],
            classes=samples.classes,
            known=file.counterexamples(rows),
            distance=file.attack_distance(rows, skip=RELATIONAL),
            largest=file.largest_radius(self.kind),
            size=size,
            spent=self.answers.spent,
        )

    def take(self, rows: Rows, value: Any) -> bool:
        """Write rows, pass on progress, keep margins for later methods, and stop at a final failure."""
        key, reporter = int(rows[0]), self.answers.reporter
        if isinstance(value, Wrote):
            self._settled.pop(key, None)
            self.file.write(self.kind, rows[value.rows], value.columns)
            reporter.advance(len(value.rows))
        elif isinstance(value, Within):
            self._settled[key] = value.settled
            reporter.within(sum(self._settled.values()), value.text)
        elif isinstance(value, Failed):
            if value.final:
                self.stopped = value.status, value.reason
                return False
            self.answers.refused(value.status, value.reason)
        elif isinstance(value, Ended):
            self.answers.asked.margin[rows] = value.margin
            for name, text in value.notes.items():
                self._notes[name] = min(self._notes.get(name, (key, text)), (key, text))
        return True

    def left(self, rows: Rows) -> Left:
        """Return the rows without an answer."""
        return np.intersect1d(rows, self.file.pending(self.kind))

    def give_up(self, row: int, end: End) -> None:
        """Write the failure of a sample that ends its worker, or does not fit into memory, even alone."""
        status = Status.OUT_OF_MEMORY if end.memory else Status.ERROR
        self.answers.write(np.array([row]), {**same(status, 1), "seconds": np.zeros(1)})
        self._lost.append((status, int(self.answers.samples.indices[row]), end.lost if end.died else ""))

    def failures(self) -> Iterator[tuple[Status, str]]:
        """Say which samples were given up, and why."""
        plain = sum(not why for _, _, why in self._lost)
        if plain:
            yield Status.OUT_OF_MEMORY, f"{counted(plain, 'sample')} did not fit into memory, even alone"
        for status, index, why in self._lost:
            if why:
                yield status, f"sample {index} was tried alone: {why}"


@dataclass
class Crew:
    """Workers of a certification, which begin when they are first needed; used as a context manager.

    Attributes:
        job: builds what they do, for a number of threads.
        staff: who they are.
    """

    job: Callable[[int], Certification]
    staff: Staff
    _stack: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def _pool(self) -> Pool:
        return self._stack.enter_context(self.staff.pool(self.job))

    def begin(self) -> Pool:
        """Start the workers, unless they run."""
        return self._pool

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @classmethod
    def of(
        cls, question: Question, program: Program, methods: tuple[Method, ...], first: Tensor, staff: Staff
    ) -> "Crew":
        """Send both networks, the question and the methods."""

        def job(threads: int) -> Certification:
            teacher = None if question.teacher is None else Portable.of(question.teacher, first)
            alone = replace(question, teacher=None)
            return Certification(Portable.of(program, first), teacher, alone, methods, first.cpu(), threads)

        return cls(job, staff)
