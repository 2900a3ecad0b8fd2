"""Relax normalisation over the last axis, without scale and shift: the core of layer and group normalisation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.mean_value import MeanValue
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
