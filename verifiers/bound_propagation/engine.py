"""What a bound-propagation engine offers, and the specification matrices it is asked about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm

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
