"""What a bound-propagation engine offers, and the specification matrices it is asked about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.certificate import Norm

#: Bounds are computed in float64 while networks are deployed in float32, whose forward pass is off by some units of
#: 2^-23 times the size of the logits: up to 20 units measured on nets of 3 to 9 layers. A margin must exceed this many.
ROUNDING_UNITS = 64 * 2.0**-23

#: Methods that an engine may offer, from the cheapest to the tightest.
METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")


@dataclass(frozen=True)
class Planes:
    """Lower bounds of rows over each sample's ball, with the linear functions of the image that gave them.

    Each function is below its row on the whole ball. ``value`` is its value at the centre, ``steepness`` its dual norm,
    so that value - r * steepness bounds the row on the concentric ball of any smaller radius r. Both are nan where an
    engine does not tell them.
    """

    bound: Float[Tensor, "*rows"]
    value: Float[Tensor, "*rows"]
    steepness: Float[Tensor, "*rows"]

    def reshape(self, shape: Sequence[int]) -> "Planes":
        """In another shape."""
        return Planes(*(getattr(self, field.name).reshape(shape) for field in fields(self)))


def joined(parts: Sequence[Planes]) -> Planes:
    """Planes one after another."""
    return Planes(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Planes)))


def better(one: Planes, other: Planes) -> Planes:
    """Row by row the planes with the larger bound; nan is no bound."""
    chosen = (other.bound > one.bound) | (one.bound.isnan() & ~other.bound.isnan())
    pairs = ((getattr(other, field.name), getattr(one, field.name)) for field in fields(Planes))
    return Planes(*(torch.where(chosen, new, old) for new, old in pairs))


#: Bounds of chosen samples of a batch, each over its own ball.
Repeated = Callable[[Int[Tensor, " rows"], Float[Tensor, " rows"]], Planes]


@runtime_checkable
class Engine(Protocol):
    """A network's graph, built once; bounds of linear functions of its logits over balls."""

    name: str
    batch_size: int
    model: nn.Module  # the network in float64

    def planes(
        self,
        x: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, " batch"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Planes:
        """Lower bounds of ``specification @ logits`` over each sample's own ball intersected with the image box.

        Raises:
            Unsupported: the engine has no such method for this network.
        """

    def repeated(
        self,
        x: Float[Tensor, "batch *shape"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Repeated:
        """``planes`` of the same batch, asked at one radius after another; what one answer finds may help the next."""

    def lower_bounds(
        self,
        x: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, " batch"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Float[Tensor, "batch rows"]:
        """The bounds alone."""


def margin_specification(
    predicted: Int[Tensor, " batch"], classes: int, dtype: torch.dtype
) -> Float[Tensor, "batch {classes}-1 {classes}"]:
    """Rows e_y - e_j for every class j other than the predicted y."""
    eye = torch.eye(classes, dtype=dtype, device=predicted.device)
    rows = eye[predicted][:, None, :] - eye[None, :, :]
    keep = predicted[:, None] != torch.arange(classes, device=predicted.device)[None, :]
    return rows[keep].reshape(len(predicted), classes - 1, classes)


def rounding_allowance(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """What a margin's lower bound must exceed to hold for an ordinary network as it runs in float32."""
    return ROUNDING_UNITS * logits.abs().amax(1).clamp_min(1.0).double()


def measured_rounding(
    network: nn.Module, exact: nn.Module, x: Float[Tensor, "batch *shape"], eps: float, probes: int = 8
) -> Float[Tensor, " batch"]:
    """Largest difference of float32 and float64 logits on each image and on random corners of its linf ball.

    Networks whose large hidden values cancel are off by far more than their logits suggest.
    """
    generator = torch.Generator().manual_seed(0)
    worst = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for probe in range(probes):
        sign = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        point = (x + sign * eps).clamp(0.0, 1.0) if probe else x
        with torch.no_grad():
            worst = torch.maximum(worst, (network(point).double() - exact(point.double())).abs().amax(1))
    return worst
