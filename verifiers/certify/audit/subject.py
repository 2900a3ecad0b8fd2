"""Everything that an audit looks at: the file, the networks that it is about, the samples, and the choice of rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from verifiers.certify.audit.meaning import method_of
from verifiers.certify.config import CertifyConfig
from verifiers.core.quantities import Arithmetic, Epsilon, Norm, parse_arithmetic
from verifiers.core.question import Question
from verifiers.core.reporter import Reporter
from verifiers.core.status import About
from verifiers.graph.program import Program
from verifiers.methods.base import Method
from verifiers.methods.registry import find
from verifiers.results.rows import Certificates
from verifiers.runtime.samples import Data, Images, Samples
from verifiers.runtime.staff import Staff

#: Rows of a block that is read and run at once.
BLOCK = 256


@dataclass(frozen=True)
class Subject:
    """The subject of an audit.

    Attributes:
        certificates: the file.
        program: the network.
        teacher: the teacher, if it was given.
        samples: the file's samples.
        chosen: numbers of the rows that are computed again and proved again, ascending.
        seed: of fresh random numbers.
        time_limit: seconds per proof.
        reporter: receives progress.
        staff: who computes rows again.
    """

    certificates: Certificates
    program: Program
    teacher: Program | None
    samples: Samples
    chosen: np.ndarray
    seed: int
    time_limit: float
    reporter: Reporter
    staff: Staff

    @property
    def pixels(self) -> int:
        """The number of values of an image."""
        return int(self.samples.images[torch.tensor([0])].numel())

    @property
    def norm(self) -> Norm:
        """The norm of the balls."""
        return Norm(self.certificates.norm)

    @property
    def arithmetic(self) -> Arithmetic:
        """The arithmetic that the file's proofs are about."""
        return parse_arithmetic(str(self.certificates.attributes.get("arithmetic", Arithmetic.FLOAT32)))

    def method(self, kind: str) -> Method:
        """Return a method with the settings of the file."""
        return method_of(self.certificates, kind)

    def question(self, eps: float | None = None) -> Question:
        """Return the file's question, with fresh random numbers."""
        radius = Epsilon.parse(self.certificates.eps_text if eps is None else eps)
        return Question(radius, self.norm, self.seed, self.teacher, self.arithmetic)

    def config(self, *methods: Method, eps: float | None = None) -> CertifyConfig:
        """Return the configuration of the file, with other methods, and at another eps if one is given."""
        attributes = self.certificates.attributes
        values = {
            "eps": self.certificates.eps_text if eps is None else eps,
            "norm": self.norm,
            "methods": methods,
            "seed": int(attributes.get("seed", 0)),
            "workers": self.staff.workers,
            "cluster": self.staff.cluster,
            "arithmetic": self.arithmetic,
        }
        return CertifyConfig.parse(values, source=self.certificates.path)

    def missing_teacher(self, kind: str) -> bool:
        """Return whether a method's rows compare with a teacher that was not given."""
        return find(kind).about is About.PAIR and self.teacher is None

    def data(self, rows: np.ndarray) -> Data:
        """Return some of the samples."""
        place = torch.as_tensor(rows)
        return Data(_Some(self.samples.images, place), self.samples.labels[place], self.samples.indices[place])


@dataclass(frozen=True)
class _Some:
    """Some of the images, read on demand."""

    images: Images
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Tensor) -> Tensor:
        return self.images[self.rows[place]]


def blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Split row numbers into blocks."""
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))
