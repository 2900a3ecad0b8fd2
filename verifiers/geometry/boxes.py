"""Boxes of any position and size, in the place of balls."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls


@dataclass(frozen=True)
class Boxes(Balls):
    """A box for each sample; nothing is intersected with [0, 1]^d.

    ``x`` is the centre and ``eps`` the largest half-width, so planes do not carry over to smaller radii.

    Attributes:
        low, high: the corners.
    """

    low: Float[Tensor, "batch *shape"]
    high: Float[Tensor, "batch *shape"]

    @classmethod
    def between(cls, low: Float[Tensor, "batch *shape"], high: Float[Tensor, "batch *shape"]) -> "Boxes":
        """Build boxes from their corners.

        Raises:
            ValueError: a box is empty, or a corner is not finite.
        """
        if not bool((low <= high).all() and low.isfinite().all() and high.isfinite().all()):
            raise ValueError("a box needs finite corners, the lower one below the upper one")
        radius = (high / 2 - low / 2).flatten(1).amax(1).double()
        return cls(low / 2 + high / 2, radius, Norm.LINF, low, high)

    def take(self, chosen: Tensor | slice) -> "Boxes":
        """Select some of the boxes, by mask, position or slice."""
        return Boxes.between(self.low[chosen], self.high[chosen])

    def split(self, size: int) -> "list[Balls]":
        """Split into parts of at most ``size`` boxes."""
        return [Boxes.between(*ends) for ends in zip(self.low.split(size), self.high.split(size), strict=True)]

    def to(self, dtype: torch.dtype) -> "Boxes":
        """Convert the corners."""
        return Boxes.between(self.low.to(dtype), self.high.to(dtype))

    def box(self) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Return the corners."""
        return self.low, self.high

    def edges(self) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Return the corners, which take the place of the image box."""
        return self.low, self.high

    def inner(self) -> "Boxes":
        """Return the boxes, whose corners are exact."""
        return self

    def contain(self, points: Float[Tensor, "batch *shape"]) -> Bool[Tensor, " batch"]:
        """Return which points are in their boxes."""
        return ((points >= self.low) & (points <= self.high)).flatten(1).all(1)

    def lowest(self, slopes: Float[Tensor, "points *shape"]) -> Float[Tensor, "points *shape"]:
        """Return the corner of the only box where each linear function is least."""
        return torch.where(slopes > 0, self.low, self.high)

    def inside(self, points: Float[Tensor, "points *shape"]) -> Float[Tensor, "points *shape"]:
        """Move points into the only box."""
        return torch.maximum(torch.minimum(points, self.high), self.low)
