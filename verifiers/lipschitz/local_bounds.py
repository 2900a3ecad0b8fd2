"""Lipschitz constants of margins on balls around images, and the radius that they certify.

On the ball of radius e around x (within the image box) every pre-activation is in a box known from bound propagation,
so every slope is in a range, and the Jacobian is bounded over that range. Ball and image box are convex: a function
changes along any segment from x by at most its steepest gradient on the way.
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

#: Constants of rows on balls: ``(rows of the batch, their radii) -> (batch, rows)``.
Constants = Callable[[Tensor, Tensor], Tensor]
#: Growth of the shells beyond eps.
GROWTH = 1.15
#: Shells at most, in one pass.
MOST = 60


def slope_ranges(
    native: Native, layers: Layers, x: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm
) -> SlopeRanges:
    """The ranges of all slopes on the balls, from CROWN bounds of the pre-activations."""
    bounds = native.bounds(Balls(x, eps, norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
        return SlopeRanges.over(layers, layers.boxes(bounds))


def local_constants(
    ranges: SlopeRanges, rows: Float[Tensor, "batch rows classes"], norm: Norm
) -> Float[Tensor, "batch rows"]:
    """Lipschitz constants of ``rows @ logits`` in the norm, wherever the slopes are in their ranges.

    The interval Jacobian, and for l2 the smaller of it and LipLT over the ranges. nan becomes inf.
    """
    found = largest_dual_norm(interval_jacobian(ranges, rows).image, DUAL[norm])
    if norm is Norm.L2:
        found = torch.minimum(found, liplt(ranges, rows))
    return found.nan_to_num(nan=float("inf"), posinf=float("inf"))


@dataclass(frozen=True)
class Shells:
    """What shells around an image prove.

    Attributes:
        radius: largest radius at which all margins are positive.
        margin: lower bound of the smallest margin at eps.
        constants: on the ball of radius eps.
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
    """Radius and margin by the shell integral m_j - sum_s (e_s - e_(s-1)) K_j(e_s), its first zero linear in a shell.

    Shells up to eps first, then growing ones until every margin is spent; then as many shells as were asked for up to
    a little beyond the radius that those gave.
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
    """Outward from the images, shell by shell.

    Attributes:
        left: what is left of each margin.
        radius: up to which none was spent.
    """

    def __init__(self, constants: Constants, margins: Float[Tensor, "batch rows"]) -> None:
        self._constants, self.left = constants, margins.clone()
        self.radius, self._spent = margins.new_zeros(len(margins)), ~(margins.amin(1) > 0)

    def open(self) -> Tensor:
        """The samples with no margin spent."""
        return (~self._spent).nonzero().flatten()

    def shell(self, rows: Tensor, before: Tensor | float, after: Tensor | float) -> Tensor:
        """One more shell for some samples; the constants on its outer ball."""
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
