"""Relax the log of the sum of exp over one axis."""

from collections.abc import Sequence
from math import log

import torch
from torch import Tensor

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.softmax import EXP
from verifiers.graph.rounding import LARGEST, LIBRARY, NORMAL, accumulated, gamma, magnitude
from verifiers.graph.rows import Rows, Shape


class LogSumExp:
    """f(x) = log sum_j exp(x_j) over one axis, which stays with length 1.

    Range: f grows with every x_j, so its extremes are at two corners of the box.
    Lower plane: f is convex, so its tangent at the centre is below it.
    Upper plane: each exp is below its chord, so the sum is below a function L that is affine, with L(c) = T > 0 at the
    centre; log is concave, so f <= log T + (L(x) - T) / T.

    Args:
        axis: counted from the end, so negative.
        shape: the input's shape.
    """

    def __init__(self, axis: int, shape: Shape) -> None:
        self.axis, self.shape = axis, shape
        self.after = tuple(1 if place - len(shape) == axis else side for place, side in enumerate(shape))

    def forward(self, *values: Tensor) -> Tensor:
        return values[0].logsumexp(self.axis, keepdim=True)

    def interval(self, *boxes: Interval) -> Interval:
        return Interval(*map(self.forward, boxes[0]))

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        return [boxes[0].high > boxes[0].low]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor:
        """Bound the error of m + log S with S = sum of exp(x_j - m) over n entries, where m is the largest.

        With D_j = m - x_j each exp is off by EXP roundings, and by D_j for its argument; by entropy these D_j add at
        most log n to the sum's share, as in ``Softmax``, and each exp may underflow to 0. So S, which is between 1 and
        n, is off by a share s, and log S by s / (1 - s) and by LIBRARY roundings of at most log n. Two sums follow. A
        log_softmax may take m from x_i first and log S then: one rounding of D_i more.
        """
        low, high = boxes[0]
        n, axis = self.shape[self.axis], self.axis
        spread = high.amax(axis, keepdim=True) - low.amin(axis, keepdim=True)
        share = gamma(n + EXP + 2 + spread.clamp_max(log(n))).to(low.device) + n * NORMAL
        logarithm = share / (1 - share) + float(gamma(LIBRARY)) * (log(n) + 1)
        error = logarithm + accumulated(magnitude(after) + spread + log(n) + 1, 4)
        fits = (share < 0.5) & (2 * magnitude(boxes[0]).amax(axis, keepdim=True) <= LARGEST)
        return torch.where(fits, error, torch.inf)

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Between":
        (low, high), center = boxes[0], boxes[0].center
        top = high.amax(self.axis, keepdim=True)
        first, last = (low - top).exp(), (high - top).exp()
        width = high - low
        chord = torch.where(width > 0, -last * (-width).expm1() / torch.where(width > 0, width, 1.0), last)
        middle = ((first + last) / 2).sum(self.axis, keepdim=True)
        return _Between(self, center, (center.softmax(self.axis), chord / middle), top + middle.log())


class _Between:
    """The tangent at the centre below, and the plane of the chords above."""

    def __init__(self, operator: LogSumExp, center: Tensor, slopes: tuple[Tensor, Tensor], highest: Tensor) -> None:
        self.operator, self.slopes = operator, slopes
        ends = (operator.forward(center), highest)
        self.offsets = tuple(
            end - (slope * center).sum(operator.axis, keepdim=True) for end, slope in zip(ends, slopes, strict=True)
        )

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.dense(self.operator.after)
        negative = rows.values.clamp_max(0)
        positive = rows.values - negative

        def weighed(below: Tensor, above: Tensor) -> Tensor:
            return positive * rows.gather(below, samples) + negative * rows.gather(above, samples)

        return Pushed([Rows(weighed(*self.slopes))], weighed(*self.offsets).flatten(1).sum(1))
