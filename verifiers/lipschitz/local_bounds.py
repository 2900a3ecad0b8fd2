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

from verifiers.bound_propagation.native.bounds import DUAL, Balls, Bounds
from verifiers.bound_propagation.native.engine import Native
from verifiers.certificate import Norm
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
    bounds = Bounds(native.graph, Balls(x, eps, norm), native.dual_reaches(norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
        return SlopeRanges.over(layers, [bounds.intervals[layer.position] for layer in layers.hidden])


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
    """

    radius: Float[Tensor, " batch"]
    margin: Float[Tensor, " batch"]


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
    first = _first_pass(constants, margins, eps, limit, max(1, shells // 2))
    again = (1.2 * first.radius).clamp_max(limit)
    return Shells(torch.maximum(first.radius, _march(constants, margins, again, shells)), first.margin)


def _first_pass(constants: Constants, margins: Tensor, eps: float, limit: float, shells: int) -> Shells:
    everyone = torch.arange(len(margins), device=margins.device)
    left, radius, spent = margins.clone(), margins.new_zeros(len(margins)), margins.amin(1) <= 0
    before = 0.0
    for s in range(1, shells + 1):
        radius, spent, left = _shell(constants, everyone, left, radius, spent, before, eps * s / shells)
        before = eps * s / shells
    at_eps = left.amin(1)
    for _ in range(MOST):
        open_ = (~spent).nonzero().flatten()
        if not len(open_) or before >= limit:
            break
        after = min(before * GROWTH, limit)
        parts = _shell(constants, open_, left[open_], radius[open_], spent[open_], before, after)
        radius[open_], spent[open_], left[open_] = parts
        before = after
    return Shells(radius, at_eps)


def _march(constants: Constants, margins: Tensor, ends: Float[Tensor, " batch"], shells: int) -> Tensor:
    """The radius by equal shells up to each sample's own end."""
    left, radius, spent = margins.clone(), torch.zeros_like(ends), (margins.amin(1) <= 0) | (ends <= 0)
    for s in range(1, shells + 1):
        open_ = (~spent).nonzero().flatten()
        if not len(open_):
            break
        before, after = ends[open_] * (s - 1) / shells, ends[open_] * s / shells
        parts = _shell(constants, open_, left[open_], radius[open_], spent[open_], before, after)
        radius[open_], spent[open_], left[open_] = parts
    return radius


def _shell(
    constants: Constants,
    rows: Tensor,
    left: Float[Tensor, "batch rows"],
    radius: Float[Tensor, " batch"],
    spent: Tensor,
    before: Tensor | float,
    after: Tensor | float,
) -> tuple[Tensor, Tensor, Tensor]:
    """One more shell: the radius where no margin is spent within it, whether one is, and what is left of them."""
    inner, outer = (
        torch.as_tensor(end, dtype=left.dtype, device=left.device).expand(len(rows)) for end in (before, after)
    )
    steep = constants(rows, outer)
    reach = (inner[:, None] + left / steep).nan_to_num(nan=0.0).amin(1)
    remains = left - (outer - inner)[:, None] * steep
    now = ~(remains.amin(1) > 0)
    found = torch.where(now, torch.minimum(reach, outer), outer)
    return torch.where(spent, radius, torch.maximum(radius, found)), spent | now, remains
