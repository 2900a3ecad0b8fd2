"""Bound Lipschitz constants of margins on balls around images, and derive the radius that they certify.

On the ball of radius e around x (within the image box), bound propagation gives a box for every pre-activation. Every
slope is therefore in a range, and the Jacobian is bounded over that range. Ball and image box are convex: along any
segment from x, a function changes at a rate of at most its steepest gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import DUAL, Balls
from verifiers.lipschitz.jacobians import SlopeRanges, interval_jacobian, largest_dual_norm, liplt
from verifiers.lipschitz.layers import Layers

#: Maps rows of the batch and their radii to the constants of the rows on those balls, ``(batch, rows)``.
Constants = Callable[[Tensor, Tensor], Tensor]
#: Growth of the shells beyond eps.
GROWTH = 1.15
#: The most shells in one pass.
MOST = 60


def slope_ranges(
    native: Native, layers: Layers, x: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm
) -> SlopeRanges:
    """Bound all slopes on the balls, from CROWN bounds of the pre-activations."""
    bounds = native.bounds(Balls(x, eps, norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
        return SlopeRanges.over(layers, layers.boxes(bounds))


def local_constants(
    ranges: SlopeRanges, rows: Float[Tensor, "batch rows classes"], norm: Norm
) -> Float[Tensor, "batch rows"]:
    """Bound the Lipschitz constants of ``rows @ logits`` in the norm, for all slopes within their ranges.

    The bound comes from the interval Jacobian, for l2 also from LipLT over the ranges if smaller. nan becomes inf.
    """
    found = largest_dual_norm(interval_jacobian(ranges, rows).image, DUAL[norm])
    if norm is Norm.L2:
        found = torch.minimum(found, liplt(ranges, rows))
    return found.nan_to_num(nan=float("inf"), posinf=float("inf"))


@dataclass(frozen=True)
class Shells:
    """The results of integrating over shells around an image.

    Attributes:
        radius: the largest radius at which all margins are positive.
        margin: a lower bound of the smallest margin at eps.
        constants: the constants on the ball of radius eps.
    """

    radius: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    constants: Float[Tensor, "batch rows"]


def integrate(
    constants: Constants,
    margins: Float[Tensor, "batch rows"],
    eps: float,
    limit: float,
    shells: int,
) -> Shells:
    """Compute radius and margin from the shell integral m_j - sum_s (e_s - e_(s-1)) K_j(e_s), linear within a shell.

    The first pass takes shells up to eps, then growing ones until every margin is spent. The second pass takes
    ``shells`` shells up to slightly beyond the radius of the first.
    """
    first, steps = _Walk(constants, margins), max(1, shells // 2)
    everyone = torch.arange(len(margins), device=margins.device)
    for s in range(1, steps + 1):
        at_eps = first.shell(everyone, eps * ((s - 1) / steps), eps * (s / steps))
    margin, before = first.left.amin(1), eps
    for _ in range(MOST):
        rows, after = first.open(), min(before * GROWTH, limit)
        if not len(rows) or before >= limit:
            break
        first.shell(rows, before, after)
        before = after
    again, ends = _Walk(constants, margins), (1.2 * first.radius).clamp_max(limit)
    for s in range(1, shells + 1):
        rows = again.open()
        if not len(rows):
            break
        again.shell(rows, ends[rows] * ((s - 1) / shells), ends[rows] * (s / shells))
    return Shells(torch.maximum(first.radius, again.radius), margin, at_eps)


class _Walk:
    """Walk outward from the images, shell by shell.

    Attributes:
        left: the remainder of each margin.
        radius: the radius up to which no margin was spent.
    """

    def __init__(self, constants: Constants, margins: Float[Tensor, "batch rows"]) -> None:
        self._constants, self.left = constants, margins.clone()
        self.radius, self._spent = margins.new_zeros(len(margins)), ~(margins.amin(1) > 0)

    def open(self) -> Tensor:
        """Return the samples with no margin spent."""
        return (~self._spent).nonzero().flatten()

    def shell(self, rows: Tensor, before: Tensor | float, after: Tensor | float) -> Tensor:
        """Add a shell for some samples; return the constants on its outer ball."""
        inner, outer = (
            torch.as_tensor(end, dtype=self.left.dtype, device=self.left.device).expand(len(rows))
            for end in (before, after)
        )
        steep, left = self._constants(rows, outer), self.left[rows]
        reach = (inner[:, None] + left / steep).nan_to_num(nan=0.0).amin(1)
        self.left[rows] = left - (outer - inner)[:, None] * steep
        now = ~(self.left[rows].amin(1) > 0)
        found = torch.maximum(self.radius[rows], torch.where(now, torch.minimum(reach, outer), outer))
        self.radius[rows] = torch.where(self._spent[rows], self.radius[rows], found)
        self._spent[rows] |= now
        return steep
