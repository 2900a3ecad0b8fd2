"""Relax softmax over one axis."""

from collections.abc import Callable, Sequence
from math import exp, log

import torch
from torch import Tensor

from verifiers.graph.operators import Enclosed, Interval, Pushed
from verifiers.graph.relaxations.convex import Reciprocal
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.mean_value import MeanValue
from verifiers.graph.relaxations.sigmoidal import replaced
from verifiers.graph.rounding import LARGEST, NORMAL, TINY, UNIT, accumulated, magnitude
from verifiers.graph.rows import Rows, Shape

#: Roundings of the exp in torch's softmax and attention on CPUs, whose fastest version is accurate to 20 ulp.
EXP = 40
#: The fewest keys that a fused attention takes at once.
BLOCK = 16
#: Differences of scores are cut here before they are exponentiated: it moves a softmax by at most ``CUT``.
CAP, CUT = 20.0, 2.1e-9
#: The rounding of a total, in units of roundoff of its largest value.
SLACK = 64


class Softmax:
    """p = softmax(x) over one axis, counted from the end.

    Range: p_i grows with x_i and falls with every other x_j, so its extremes are at two corners of the box.
    Relaxation: mean-value form. J_ij = p_i (delta_ij - p_j). If p is within m -+ s, entries off the diagonal are within
    -m_i m_j -+ (m_i s_j + s_i m_j + s_i s_j); the range of p_i - p_i^2 on the diagonal is known exactly.

    Args:
        axis: negative.
        shape: the node's shape.
        fused: True inside attention, where float32 may go through the keys block by block.
    """

    def __init__(self, axis: int, shape: Shape, *, fused: bool = False) -> None:
        self.axis, self.shape, self.fused = axis, shape, fused

    def forward(self, *values: Tensor) -> Tensor:
        return values[0].softmax(self.axis)

    def interval(self, *boxes: Interval) -> Interval:
        low, high = boxes[0]
        return Interval(self._extreme(low, high), self._extreme(high, low))

    def _extreme(self, own: Tensor, others: Tensor) -> Tensor:
        """Compute 1 / (1 + sum over j other than i of exp(others_j - own_i)), without overflow or loss."""
        return torch.sigmoid(own - _log_sum_of_others(others, self.axis))

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        return [boxes[0].high > boxes[0].low]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor:
        """Bound the error of exp(x_i - m) / sum of exp(x_j - m) with n entries, where m is the largest.

        With D_j = m - x_j each exp is off by EXP roundings, and by D_j for its argument. The sum's n - 1 roundings, the
        quotient and the exps of the sum add up to gamma(n + 2 EXP + 4) p_i + u p_i (D_i + sum p_j D_j). As p_i <=
        exp(-D_i), p_i D_i is at most 1/e, and at most p_i times the range of x; sum p_j D_j is at most log n, since the
        entropy of p is. Each exp may underflow to 0.

        Fused attention takes blocks of ``BLOCK`` keys or more, with the largest score so far: each new block rescales
        what was summed by an exp of a difference of maxima. Its exponents are differences of products with log2(e), so
        they are off by 8 roundings of |m| + D_j, and by 4 more for every block.
        """
        low, high = boxes[0]
        n, size, axis = self.shape[self.axis], magnitude(after), self.axis
        spread = high.amax(axis, keepdim=True) - low.amin(axis, keepdim=True)
        blocks = -(-n // BLOCK)
        exponents = 8 + 4 * blocks if self.fused else 0
        steps = n + 2 * EXP + 4 + (1 + exponents) * spread.clamp_max(log(n))
        if self.fused:
            top = magnitude((low.amax(axis, keepdim=True), high.amax(axis, keepdim=True)))
            steps = steps + blocks * (EXP + 4) + exponents * top
        error = accumulated(size, steps, tiny=(n + 2) * NORMAL / TINY)
        error = error + UNIT * (1 + exponents) * (spread * size).clamp_max(0.37)
        largest = magnitude(boxes[0]).amax(axis, keepdim=True)
        return torch.where(2 * largest <= LARGEST, error, torch.inf)

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> MeanValue:
        box, axis = boxes[0], self.axis
        span = self.interval(box)
        center, half, m, s = box.center, box.half_width, span.center, span.half_width
        diagonal, spread = _diagonal(span)
        off = m * (s * half).sum(axis, keepdim=True) + s * ((m + s) * half).sum(axis, keepdim=True)
        own = (2 * m * s + s * s) * half
        error = spread * half + (off - own).clamp_min(0)

        def transpose(values: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
            middle = gather(m)
            return values * gather(diagonal + m * m) - middle * (values * middle).sum(axis, keepdim=True)

        return MeanValue(center.softmax(axis), error, span, center, transpose, self.shape)


class SoftmaxOfSum(Softmax):
    """p_i = 1 / total_i, where total_i is the sum of exp(x_j - x_i) over all j; x is the second input.

    Range: that of softmax over the box of x, met with the reciprocal of the total's.
    Relaxation: lines of the reciprocal, and constants where the total may be too large for them.
    """

    def forward(self, *values: Tensor) -> Tensor:
        return super().forward(values[1])

    def interval(self, *boxes: Interval) -> Interval:
        by_scores = super().interval(boxes[1])
        low, high, cut = self._of_total(boxes[0])
        least, most = torch.fmax(by_scores.low, 1 / high - cut), torch.fmin(by_scores.high, 1 / low + cut)
        return Interval(torch.minimum(least, most), torch.maximum(least, most))

    def _of_total(self, box: Interval) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ends of the total, at least 1 and infinite where nothing is known, and what a cut may do to p."""
        slack = SLACK * torch.finfo(box.low.dtype).eps
        high = (box.high * (1 + slack)).nan_to_num(nan=torch.inf).clamp_min(1.0)
        low = (box.low - slack * high).nan_to_num(nan=1.0).clamp_min(1.0)
        return torch.minimum(low, high), high, torch.where(high < exp(CAP), 0.0, CUT).to(high)

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor | None]:  # type: ignore[override]
        return [boxes[0].high > boxes[0].low, None]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor:
        return super().rounding(boxes[1:], after)

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_OfTotal":  # type: ignore[override]
        (low, high, cut), span = self._of_total(boxes[0]), self.interval(*boxes)
        fits = torch.isfinite(high)
        lines = Reciprocal().lines(torch.where(fits, low, 1.0), torch.where(fits, high, 1.0), alpha)
        lines = lines._replace(lower_offset=lines.lower_offset - cut, upper_offset=lines.upper_offset + cut)
        return _OfTotal(replaced(lines, ~fits, 0.0, span.low, span.high))


class _OfTotal(Enclosed):
    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        total, constant = super().push(rows, samples)
        return Pushed([*total, None], constant)


def _log_sum_of_others(x: Tensor, axis: int) -> Tensor:
    """Compute for every entry the log of the sum of exp of the others.

    The sums run from both ends, because a difference of sums would cancel, and are scaled by the largest entry. The
    largest entry has a sum of its own: scaled by it, the others might all underflow.
    """
    top, where = x.max(axis, keepdim=True)
    terms = (x - top).exp()
    zero, size = torch.zeros_like(top), x.shape[axis]
    before = torch.cat([zero, terms.narrow(axis, 0, size - 1)], axis).cumsum(axis)
    after = torch.cat([terms.narrow(axis, 1, size - 1), zero], axis).flip(axis).cumsum(axis).flip(axis)
    is_top = torch.zeros_like(x, dtype=torch.bool).scatter(axis, where, True)
    others = top + torch.where(is_top, 1.0, before + after).log()
    without_top = x.masked_fill(is_top, -float("inf")).logsumexp(axis, keepdim=True)
    return torch.where(is_top, without_top, others)


def _diagonal(span: Interval) -> tuple[Tensor, Tensor]:
    """Return the centre and half-width of p (1 - p) for p in the span."""
    ends = [p * (1 - p) for p in span]
    top = torch.where((span.low <= 0.5) & (span.high >= 0.5), 0.25, torch.maximum(*ends))
    bottom = torch.minimum(*ends)
    return (top + bottom) / 2, (top - bottom) / 2
