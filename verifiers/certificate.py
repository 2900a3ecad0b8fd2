"""What every certificate has: its status, its guarantee, its columns, and the record of the method that issues it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.quantities import Epsilon
from verifiers.samples import Samples

#: A setting of a method.
Option = int | float | str | None


class Status(IntEnum):
    """What became of one sample; exactly one per row. A failure is never folded into NOT_CERTIFIED."""

    PENDING = 0
    CERTIFIED = 1
    NOT_CERTIFIED = 2
    ABSTAINED = 3
    MISCLASSIFIED = 4
    FALSIFIED = 5
    VACUOUS = 6
    UNSUPPORTED = 7
    OUT_OF_MEMORY = 8
    TIMEOUT = 9
    ERROR = 10


#: Rows in these states say nothing about the sample: a resumed run tries them again.
FAILURES = (Status.UNSUPPORTED, Status.OUT_OF_MEMORY, Status.TIMEOUT, Status.ERROR)


class Guarantee(StrEnum):
    """What a method's answer is worth."""

    DETERMINISTIC = "deterministic"  # a proof, up to the stated rounding allowance
    PROBABILISTIC = "probabilistic"  # confidence 1 - alpha per sample
    ESTIMATE = "estimate"  # no proof; never feeds a radius


class Norm(StrEnum):
    """The norm of the ball around an image. The region is the ball intersected with the image box [0, 1]^d."""

    LINF = "linf"
    L2 = "l2"
    L1 = "l1"


@dataclass(frozen=True)
class Column:
    """One per-sample value of a method, as it is stored.

    Attributes:
        name: dataset name in the certificate file.
        dtype: numpy dtype string.
        units: "pixels", "logits", "seconds" or "" for counts, flags and labels.
        description: one line that says what the value is.
        axes: axes of a row that is no scalar: a length, "image" for the axes of an image, "class" for one per class.
        guarantee: what the value is worth, where that differs within a method.
    """

    name: str
    dtype: str
    units: str
    description: str
    axes: tuple[int | str, ...] = ()
    guarantee: Guarantee | None = None

    @property
    def fill(self) -> Any:
        """The value of a row that is not computed yet (or never will be)."""
        return np.nan if self.dtype.startswith("float") else -1 if self.dtype.startswith("int") else 0


#: The columns that every method has. ``certify.py`` fills all but radius and margin.
COMMON_COLUMNS = (
    Column("index", "int64", "", "index of the sample in its data set split"),
    Column("label", "int64", "", "true class"),
    Column("predicted", "int64", "", "class predicted by the network on the clean image"),
    Column("correct", "uint8", "", "1 when the predicted class is the true class"),
    Column("radius", "float64", "pixels", "largest radius proved, rounded down; 0 when none or misclassified"),
    Column(
        "margin",
        "float64",
        "logits",
        "smallest margin at eps: found by an attack, or bounded from below less the rounding allowance",
    ),
    Column("certified", "uint8", "", "1 when correct and radius >= eps"),
    Column("seconds", "float64", "seconds", "time spent on the row: its batch's time over the batch's rows"),
    Column("status", "uint8", "", "; ".join(f"{s.value} {s.name}" for s in Status)),
)


@dataclass(frozen=True)
class Request:
    """What is asked of a method.

    Attributes:
        eps: the radius the certified accuracy is reported at.
        norm: norm of the ball.
        seed: run seed; all randomness is keyed by it and the sample index.
        options: the method's own settings, by name, defaults filled in; None where one was needed and not given.
        engine: bound-propagation engine: ``auto``, ``auto-lirpa`` or ``native``.
        cross_check: number of samples whose bounds are held against the other engine's.
        teacher: the network that the joint method holds the certified one against.
    """

    eps: Epsilon
    norm: Norm
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "auto"
    cross_check: int = 0
    teacher: nn.Module | None = None


Columns = dict[str, np.ndarray]


@runtime_checkable
class BatchCertifier(Protocol):
    """A method made ready for one network.

    Called with images in [0, 1], their predicted classes and their sample indices, it returns at least ``status``,
    ``radius`` and ``margin``, one value per row; rows that it leaves PENDING are asked again in the next call. Where it
    gives no ``seconds``, rows share those of the call. ``batch_size`` is the number of rows that suits it, ``notes``
    are stored as attributes of its group.
    """

    @property
    def batch_size(self) -> int: ...

    @property
    def notes(self) -> Mapping[str, str]: ...

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        predicted: Int[Tensor, " batch"],
        indices: Int[Tensor, " batch"],
    ) -> Columns: ...


@dataclass(frozen=True)
class MethodInfo:
    """A certificate method, as ``certkd methods`` lists it.

    Attributes:
        name: group name in the certificate file.
        guarantee: what its radius is worth.
        norms: the norms it handles.
        claim: one line: what a row says.
        paper: where it comes from.
        cost: rough cost per sample, in forward passes or words.
        prepare: makes it ready for a network, given two sample images; raises ``Unsupported`` when it cannot.
        check: looks at the settings before anything is written; raises ``InputError``.
        columns: its own columns, after the common ones.
        options: default of each of its settings; None where there is no good one.
        needs_teacher: it compares with the request's teacher.
        predicts: it gives the predicted class itself, in a column ``predicted``, and is asked about every sample; a
            column ``base`` of its own takes the network's prediction.
        preview: lines that a person should read before the run, from the method made ready, samples and device.
    """

    name: str
    guarantee: Guarantee
    norms: tuple[Norm, ...]
    claim: str
    paper: str
    cost: str
    prepare: Callable[[nn.Module, Float[Tensor, "samples *shape"], Request], BatchCertifier]
    columns: tuple[Column, ...] = ()
    options: Mapping[str, Option] = field(default_factory=dict)
    needs_teacher: bool = False
    predicts: bool = False
    check: Callable[[Request], None] = lambda _: None
    preview: Callable[[Any, Samples, torch.device], Iterable[str]] = lambda *_: ()


def stored(status: Int[Tensor, " batch"], values: Mapping[str, Tensor]) -> Columns:
    """Columns as arrays on the CPU, the status in its own type."""
    return {
        "status": status.cpu().numpy().astype("uint8"),
        **{name: value.cpu().numpy() for name, value in values.items()},
    }


class Unsupported(Exception):
    """A method cannot handle a network or a norm; the message names the layer or what is missing."""


class Contradiction(Exception):
    """Two facts about a network exclude each other: a bound is broken by an attack, or a graph is another network."""


def margins(logits: Float[Tensor, "batch classes"], predicted: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Smallest margin f_y - f_j over the other classes j, y the predicted class."""
    own = logits.gather(1, predicted[:, None])
    others = logits.scatter(1, predicted[:, None], -float("inf"))
    return (own - others.amax(1, keepdim=True)).squeeze(1)
