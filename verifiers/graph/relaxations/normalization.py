"""Relax normalisation over the last axis, without scale and shift: the core of layer and group normalisation."""

from collections.abc import Callable, Sequence
from math import log

import torch
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
    """

    def __init__(self, eps: float, shape: Shape) -> None:
        self.eps, self.shape, self.count = eps, shape, shape[-1]

    def forward(self, *values: Tensor) -> Tensor:
        deviation = values[0] - values[0].mean(-1, keepdim=True)
        return deviation / (deviation.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def interval(self, *boxes: Interval) -> Interval:
        return self._ranges(boxes[0])[0]

    def _ranges(self, box: Interval) -> tuple[Interval, Interval]:
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
        """Bound the error for the usual ways to compute mean and variance: two passes, E[x^2] - mean^2, Welford's
        updates one by one, and Chan's merges of parts.

        Let A be the mean of |x| and Q that of x^2. The mean is off by at most gamma(n + 3 log n + 8) A: an update of
        Welford's is a difference, a quotient and a sum, so j times the error after j entries grows by at most
        u (j |mean_j| + 3 |x_j| + 3 |mean_(j-1)|). The variance is off by at most gamma(16 (n + 8)) Q. Two passes:
        gamma(n + 4) of the variance, and the square of the mean's error. E[x^2] - mean^2: gamma(3 n + 6) (Q + A^2).
        Updates: the mean's error, at most 7 u sqrt(j n Q) after j entries, times the deviations from the means before
        and after, whose squares add up to at most 4 n and n times the variance; by Cauchy-Schwarz that is 15 n u Q.
        The sum of the updates adds n + 4.

        Deviations are a difference or x t - mean t, at most 8 roundings of |x| + |mean| with the scale and shift that
        may be merged into them, and 1 / sqrt is off by 10. If the variance may be nothing but rounding, 1 / sqrt is at
        most 1 / sqrt(eps).
        """
        n, box = self.count, boxes[0]
        span, scale = self._ranges(box)
        size, limit = magnitude(box), magnitude(span)
        mean, square = size.mean(-1, keepdim=True), size.square().mean(-1, keepdim=True)
        off_mean = gamma(n + 3 * log(n) + 8) * mean + n * TINY
        off_variance = gamma(16 * (n + 8)) * square + n * TINY
        share = off_variance * scale.high**2 + 2 * UNIT
        stretch = (1 - share.clamp_max(0.75)).rsqrt() * (1 + gamma(10)) - 1
        off_deviation = off_mean + gamma(8) * (size + mean) + TINY
        error = scale.high * (1 + stretch) * off_deviation + limit * (stretch + gamma(4))
        steepest = self.eps**-0.5 * (1 + gamma(10)) if self.eps >= NORMAL else torch.inf
        deviation = torch.minimum(limit / scale.low, size + mean)
        worst = (deviation + off_deviation) * steepest + limit
        error = UP * torch.where(share <= 0.75, torch.minimum(error, worst), worst) + TINY
        return torch.where((n * square <= LARGEST) & (error <= LARGEST), error, torch.inf)

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> MeanValue:
        box, n = boxes[0], self.count
        span, scale = self._ranges(box)
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
