"""Relax normalisation over the last axis, without scale and shift: the core of layer and group normalisation."""

from collections.abc import Callable, Sequence
from math import log2

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.mean_value import MeanValue
from verifiers.graph.rounding import LARGEST, NORMAL, TINY, UNIT, UP, gamma, magnitude
from verifiers.graph.rows import Shape


class Normalization:
    """z = (x - mean) / sqrt(variance + eps) over the last axis of n entries.

    Range: the deviation x - mean is linear in x, so its range over the box is exact. The length of the deviations
    differs from its value at the centre by at most the length of the half-widths, as projections do not stretch; this
    bounds the standard deviation. Always |z_i| <= sqrt(n - 1).
    Relaxation: mean-value form. J_ij = t (delta_ij - 1/n - z_i z_j / n) with t = 1 / sqrt(variance + eps). If t is
    within t0 -+ tr and z within m -+ w, the entries are within t0 K_ij -+ (tr |K_ij| + (t0 + tr) E_ij) for
    K_ij = delta_ij - (1 + m_i m_j) / n and E_ij = (|m_i| w_j + w_i |m_j| + w_i w_j) / n.

    Args:
        eps: is added to the variance.
        shape: the node's shape.
        squares: float32 may compute the variance as E[x^2] - mean^2, as torch's group normalisation does on CPUs for
            maps with channels last.
    """

    def __init__(self, eps: float, shape: Shape, *, squares: bool = False) -> None:
        self.eps, self.shape, self.count, self.squares = eps, shape, shape[-1], squares

    def forward(self, *values: Tensor) -> Tensor:
        deviation = values[0] - values[0].mean(-1, keepdim=True)
        return deviation / (deviation.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def interval(self, *boxes: Interval) -> Interval:
        return self.ranges(boxes[0])[0]

    def ranges(self, box: Interval) -> tuple[Interval, Interval]:
        """Compute ranges of z and of t."""
        n, center, half = self.count, box.center, box.half_width
        deviation = center - center.mean(-1, keepdim=True)
        around = (1 - 2 / n) * half + half.mean(-1, keepdim=True)  # |row of the projection| times the half-widths
        low, high = deviation - around, deviation + around
        length, stretch = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) for v in (deviation, half))
        nearest = torch.where((low <= 0) & (high >= 0), 0.0, torch.minimum(low.abs(), high.abs()))
        farthest = torch.maximum(low.abs(), high.abs())
        shortest = torch.maximum(
            (length - stretch).clamp_min(0), torch.linalg.vector_norm(nearest, dim=-1, keepdim=True)
        )
        longest = torch.minimum(length + stretch, torch.linalg.vector_norm(farthest, dim=-1, keepdim=True))
        scale = Interval((longest**2 / n + self.eps).rsqrt(), (shortest**2 / n + self.eps).rsqrt())
        limit = max(n - 1, 0) ** 0.5
        lowest = torch.where(low < 0, low * scale.high, low * scale.low).clamp(-limit, limit)
        highest = torch.where(high > 0, high * scale.high, high * scale.low).clamp(-limit, limit)
        return Interval(lowest, highest), scale

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        return [boxes[0].high > boxes[0].low]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor:
        """Bound the error for the usual ways to compute mean and variance, see ``moments``.

        Deviations are a difference or x t - mean t, at most 8 roundings of |x| + |mean| with the scale and shift that
        may be merged into them, and t = 1 / sqrt(variance + eps) is off by 10 and by what the variance is off by. If
        the variance may be nothing but rounding, t is at most 1 / sqrt(eps).
        """
        n, box = self.count, boxes[0]
        span, scale = self.ranges(box)
        size, limit = magnitude(box), magnitude(span)
        off_mean, share = self.moments(box, scale)
        stretch = (1 - share.clamp_max(0.75)).rsqrt() * (1 + gamma(10)) - 1
        moved = size + size.mean(-1, keepdim=True)
        off_deviation = off_mean + gamma(8) * moved + TINY
        error = scale.high * (1 + stretch) * off_deviation + limit * (stretch + gamma(4))
        steepest = self.eps**-0.5 * (1 + gamma(10)) if self.eps >= NORMAL else torch.inf
        worst = (torch.minimum(limit / scale.low, moved) + off_deviation) * steepest + limit
        error = UP * torch.where(share <= 0.75, torch.minimum(error, worst), worst) + TINY
        overflows = n * size.square().mean(-1, keepdim=True) > LARGEST
        return torch.where(~overflows & (error <= LARGEST), error, torch.inf)

    def moments(self, box: Interval, scale: Interval) -> tuple[Tensor, Tensor]:
        """Bound the error of the mean in float32, and the share of variance + eps that the variance is off by: in two
        passes, by updates, and with ``squares`` as E[x^2] - mean^2; eps and its sum with the variance are rounded too.

        ``of_moments`` has the formulas. Relative to V + eps the error of V is largest where V is nearest to eps.
        """
        n, size = self.count, magnitude(box)
        mean, square = size.mean(-1, keepdim=True), size.square().mean(-1, keepdim=True)
        middle = box.center.mean(-1, keepdim=True).abs() + box.half_width.mean(-1, keepdim=True)
        least, most = (((1 / t.square()) - self.eps).clamp_min(0) for t in (scale.high, scale.low))
        steepest = most.minimum(least.clamp_min(self.eps)) * UP
        off_mean, by_updates, lost = of_moments(n, mean, square)
        share = by_updates * (square * steepest).sqrt() / (steepest + self.eps) + gamma(n + 8) + 4 * UNIT
        if self.squares:
            lost = lost + gamma(n + 8) * (square + 2 * middle * mean)
        return off_mean * UP, (share + lost * scale.high.square()) * UP

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> MeanValue:
        box, n = boxes[0], self.count
        span, scale = self.ranges(box)
        center, half = box.center, box.half_width
        m, w, t, tr = span.center, span.half_width, scale.center, scale.half_width
        size = m.abs()
        total, by_size, by_spread = (v.sum(-1, keepdim=True) for v in (half, size * half, w * half))
        own = (1 - (1 + m * m) / n).abs() * half
        slopes = own + ((total - half) + size * (by_size - size * half)).clamp_min(0) / n
        curvature = (size * by_spread + w * by_size + w * by_spread) / n
        error = tr * slopes + (t + tr) * curvature

        def transpose(values: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
            middle = gather(m)
            mixed = values.sum(-1, keepdim=True) + middle * (values * middle).sum(-1, keepdim=True)
            return gather(t) * (values - mixed / n)

        return MeanValue(self.forward(center), error, span, center, transpose, self.shape)


def of_moments(
    n: int, mean: Float[Tensor, "*shape"], square: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, ""], Float[Tensor, "*shape"]]:
    """Bound the errors of the mean and of the variance of n numbers in float32, in two passes or by updates.

    Let A be the mean of |x|, Q that of x^2, V the variance and M the mean. The mean as a sum is off by
    gamma(n + 1) A, two passes by gamma(n + 4) V and the square of that, and E[x^2] - M^2 by gamma(n + 8) (Q + 2 M A)
    and that square.
    Updates merge two parts of n_a >= n_b entries (n_b = 1: Welford; in general: Chan): with d the difference of their
    means, the mean is mean_a + d n_b / n, and d^2 n_a n_b / n is added to the sum of squares. All these add up to n V.
    So the rounding of d n_b / n, at most 4 u each, adds up to 4 u n sqrt(V log2 n), as the n_b add up to n log2(n) / 2;
    the rounding of the sums adds u depth A. A part's mean is thus off by u (depth + g) sqrt(Q) with
    g = 4 sqrt(log2 n) + 1, Q its own mean of squares. By Cauchy-Schwarz the sum of squares is off by at most
    2 sqrt(n V) times the root of the sum of 2 (e_a^2 + e_b^2) n_b, which is at most u^2 n Q (4 n^2 + 8 g^2 n), as the
    n_a n_b add up to less than n^2 / 2. Its own roundings add n + 8 of V.

    Args:
        n: the number of entries.
        mean: bounds of A.
        square: bounds of Q.

    Returns:
        The error of the mean; U and L such that V is off by at most gamma(n + 8) V + U sqrt(Q V) + L.
    """
    g = 4 * log2(n + 1) ** 0.5 + 1
    by_updates = gamma(2 * (4 * n * n + 8 * g * g * n) ** 0.5 + n + 8)
    off_mean = gamma(n + 8) * mean + gamma(g) * square.sqrt() + n * TINY
    return off_mean, by_updates, by_updates.square() * square + off_mean.square() + n * TINY
