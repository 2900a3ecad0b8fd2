"""The interface of a prepared method: a certifier that answers batches of samples."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.core.columns import Columns


def _none() -> list[np.ndarray]:
    """Know no counterexamples."""
    return []


def _silent(settled: int, text: str) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Batch:
    """Samples that a certifier answers together.

    Attributes:
        x: images in [0, 1], on the network's device.
        predicted: the network's predictions on them.
        indices: their indices in the data set split, on the CPU.
        classes: number of classes.
        clean: returns the smallest margins at the images, which are computed once per run, on first use.
        known: returns images that earlier methods of the run stored for the samples; nan where they found none.
        tick: receives the number of samples that need no more work, and the stage, while all are worked on.
    """

    x: Float[Tensor, "batch *shape"]
    predicted: Int[Tensor, " batch"]
    indices: Int[Tensor, " batch"]
    classes: int
    clean: Callable[[], Float[Tensor, " batch"]]
    known: Callable[[], list[np.ndarray]] = _none
    tick: Callable[[int, str], None] = _silent

    def __len__(self) -> int:
        return len(self.x)

    @property
    def margin(self) -> Float[Tensor, " batch"]:
        """The smallest margins at the images, in logits."""
        return self.clean()

    @property
    def rows(self) -> Int[np.ndarray, " batch"]:
        """The positions of all samples."""
        return np.arange(len(self.x))

    def take(self, rows: Int[Tensor, " some"]) -> "Batch":
        """Select some of the samples."""
        here = rows.to(self.x.device)
        indices = self.indices[rows.cpu()]
        return Batch(
            self.x[here],
            self.predicted[here],
            indices,
            self.classes,
            lambda: self.margin[here],
            lambda: [images[rows.cpu().numpy()] for images in self.known()],
        )


class Answer(NamedTuple):
    """The answer for part of a batch.

    Attributes:
        rows: positions in the batch, ascending.
        columns: at least ``status``, ``radius`` and ``margin``, one value per position. Without ``seconds``, the rows
            share the time since the last answer.
    """

    rows: Int[np.ndarray, " rows"]
    columns: Columns


@runtime_checkable
class Certifier(Protocol):
    """A method prepared for one network.

    A call with a batch yields answers until every sample has one; each answer is written at once. ``batch_size`` is the
    number of samples that suits the certifier. ``notes`` are stored with its rows.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, str]: ...

    def __call__(self, batch: Batch) -> Iterator[Answer]: ...


@runtime_checkable
class Recounts(Protocol):
    """A certifier whose rows are not computed again: it says itself how stored ones are looked at."""

    def recount(
        self, batch: Batch, stored: Mapping[str, np.ndarray], seed: int, tests: int
    ) -> Mapping[str, np.ndarray]:
        """Mark stored rows that do not hold, by problem.

        Args:
            batch: the samples.
            stored: their columns.
            seed: seed of fresh random numbers.
            tests: rows that are tested in the whole file, which share one level.
        """
        ...


@dataclass
class Answering:
    """Make a certifier from a function that answers a whole batch."""

    answer: Callable[[Batch], Columns]
    batch_size: int
    notes: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        yield Answer(batch.rows, self.answer(batch))


def as_columns(status: Int[Tensor, " batch"], values: Mapping[str, Tensor]) -> Columns:
    """Convert columns to arrays on the CPU, the status in its own type."""
    return {
        "status": status.cpu().numpy().astype("uint8"),
        **{name: value.cpu().numpy() for name, value in values.items()},
    }
