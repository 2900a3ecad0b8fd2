"""Minimise linear functions over an l2 ball that is cut at a box.

Over {|d| <= r, low <= d <= high}, the minimum of p d is, for every multiplier m >= 0, at least
sum_j min(p_j d_j + m/2 d_j^2 : low_j <= d_j <= high_j) - m/2 r^2. This is exact at the best multiplier. With m = 0 it
is the minimum over the box.
"""

import torch
from jaxtyping import Float
from torch import Tensor

#: Steps to the best multiplier; every one is sound.
STEPS = 6


def least(
    slopes: Float[Tensor, "rows pixels"],
    low: Float[Tensor, "rows pixels"],
    high: Float[Tensor, "rows pixels"],
    eps: Float[Tensor, " rows"],
) -> Float[Tensor, " rows"]:
    """Bound linear functions of d from below where |d| <= eps and low <= d <= high; low <= 0 <= high."""
    square, size = eps.square(), slopes.detach().square()
    m = (size.sum(1) / square.clamp_min(1e-300)).sqrt()
    best = _dual(slopes, low, high, square, torch.zeros_like(m))
    for _ in range(STEPS):
        best = torch.maximum(best, _dual(slopes, low, high, square, m))
        free, clipped = _length(slopes.detach(), low, high, size, m)
        room = square - clipped
        m = torch.where(room > 0, (free / room.clamp_min(1e-300)).sqrt(), m)
    return torch.maximum(best, _dual(slopes, low, high, square, m))


def _length(
    slopes: Tensor, low: Tensor, high: Tensor, size: Tensor, m: Tensor
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Return the squared slopes of the entries inside the box at the minimum, and the squares of those at its faces."""
    point = -slopes / m[:, None].clamp_min(1e-300)
    outside = (point < low) | (point > high)
    ends = torch.where(point < low, low, high).square()
    return size.masked_fill(outside, 0.0).sum(1), ends.where(outside, 0.0).sum(1)


def _dual(slopes: Tensor, low: Tensor, high: Tensor, square: Tensor, m: Tensor) -> Float[Tensor, " rows"]:
    """Compute the bound of a multiplier."""
    point = -slopes.detach() / m[:, None].clamp_min(1e-300)
    point = torch.minimum(torch.maximum(point.nan_to_num(nan=0.0), low), high)
    return (slopes * point).sum(1) + 0.5 * m * (point.square().sum(1) - square)
