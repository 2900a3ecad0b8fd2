"""The seam of all certificate methods."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.columns import Column, Columns
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.status import Guarantee
from verifiers.results.writer import MethodTable
from verifiers.runtime.samples import Samples

#: A setting of a method.
Option = int | float | str | None


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


def table_of(info: MethodInfo, request: Request) -> MethodTable:
    """The group that a file has for a method with these settings."""
    given = {name: value for name, value in request.options.items() if value is not None}
    attributes = {
        "guarantee": str(info.guarantee),
        "claim": info.claim,
        "paper": info.paper,
        "eps": request.eps.value,
        "eps_text": request.eps.text,
        "norm": str(request.norm),
        "seed": request.seed,
        **given,
    }
    return MethodTable(info.name, info.columns, attributes)
