"""Bound Lipschitz constants of margins on balls around images, and derive the radius that they certify.

On the ball of radius e around x (within the image box), bound propagation gives a box for every pre-activation. Every
slope is therefore in a range, and the Jacobian is bounded over that range. Ball and image box are convex: along any
segment from x, a function changes at a rate of at most its steepest gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation import Bounds, Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import DUAL, Balls
from verifiers.lipschitz.jacobians import SlopeRanges, interval_jacobian, largest_dual_norm, liplt
from verifiers.lipschitz.layers import Layers


class OnBall(NamedTuple):
    """Hold bounds of rows on balls, ``(batch, rows)``.

    Attributes:
        constants: Lipschitz constants of the exact network.
        rounding: the most by which the deployed network falls below the exact one.
    """

    constants: Float[Tensor, "batch rows"]
    rounding: Float[Tensor, "batch rows"]


#: Bounds rows of the batch on balls of the given radii.
OnBalls = Callable[[Tensor, Tensor], OnBall]
#: Growth of the shells beyond eps.
GROWTH = 1.15
#: The most shells in one pass.
MOST = 60


def bounds_on(native: Native, x: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm) -> Bounds:
    """Compute CROWN bounds of all layers on balls."""
    bounds = native.bounds(Balls(x, eps, norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
    return bounds


def slope_ranges(bounds: Bounds, layers: Layers) -> SlopeRanges:
    """Bound all slopes on balls, from bounds of the layers."""
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
        at_eps: the constants and the rounding on the ball of radius eps.
    """

    radius: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    at_eps: OnBall


def integrate(
    on: OnBalls,
    margins: Float[Tensor, "batch rows"],
    eps: float,
    limit: float,
    shells: int,
) -> Shells:
    """Compute radius and margin from the shell integral m_j - sum_s (e_s - e_(s-1)) K_j(e_s), linear within a shell.

    A margin of the exact network proves the deployed one on a ball if it exceeds the rounding there, which grows with
    the ball. Within a shell the rounding on its outer ball counts.

    The first pass takes shells up to eps, then growing ones until every margin is spent. The second pass takes
    ``shells`` shells up to slightly beyond the radius of the first.
    """
    first, steps = _Walk(on, margins), max(1, shells // 2)
    everyone = torch.arange(len(margins), device=margins.device)
    for s in range(1, steps + 1):
        at_eps = first.shell(everyone, eps * ((s - 1) / steps), eps * (s / steps))
    margin, before = (first.left - at_eps.rounding).amin(1), eps
    for _ in range(MOST):
        rows, after = first.open(), min(before * GROWTH, limit)
        if not len(rows) or before >= limit:
            break
        first.shell(rows, before, after)
        before = after
    again, ends = _Walk(on, margins), (1.2 * first.radius).clamp_max(limit)
    for s in range(1, shells + 1):
        rows = again.open()
        if not len(rows):
            break
        again.shell(rows, ends[rows] * ((s - 1) / shells), ends[rows] * (s / shells))
    return Shells(torch.maximum(first.radius, again.radius), margin, at_eps)


class _Walk:
    """Walk outward from the images, shell by shell.

    Attributes:
        left: the remainder of each margin of the exact network.
        radius: the radius up to which no margin was spent.
    """

    def __init__(self, on: OnBalls, margins: Float[Tensor, "batch rows"]) -> None:
        self._on, self.left = on, margins.clone()
        self.radius, self._spent = margins.new_zeros(len(margins)), ~(margins.amin(1) > 0)

    def open(self) -> Tensor:
        """Return the samples with no margin spent."""
        return (~self._spent).nonzero().flatten()

    def shell(self, rows: Tensor, before: Tensor | float, after: Tensor | float) -> OnBall:
        """Add a shell for some samples; return the constants and the rounding on its outer ball."""
        inner, outer = (
            torch.as_tensor(end, dtype=self.left.dtype, device=self.left.device).expand(len(rows))
            for end in (before, after)
        )
        found_on, left = self._on(rows, outer), self.left[rows]
        steep, rounding = found_on
        reach = (inner[:, None] + (left - rounding) / steep).nan_to_num(nan=0.0).amin(1)
        self.left[rows] = left - (outer - inner)[:, None] * steep
        now = ~((self.left[rows] - rounding).amin(1) > 0)
        found = torch.maximum(self.radius[rows], torch.where(now, torch.minimum(reach, outer), outer))
        self.radius[rows] = torch.where(self._spent[rows], self.radius[rows], found)
        self._spent[rows] |= now
        return found_on
