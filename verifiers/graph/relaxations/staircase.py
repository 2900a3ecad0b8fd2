"""Relax rounding to the codes of an int8 network."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.lines import Alpha, Lines

#: The steepest line; steeper ones would overflow where they are multiplied.
STEEPEST = 2.0**20
#: Intervals grow by this share before their cells are counted: it covers the rounding of the engine in float64.
EDGE = 2.0**-30


@dataclass(frozen=True)
class Staircase:
    """min(max(round(x), low), high) for integers low <= high; a half is rounded to even, or to odd if ``odd``.

    Sound: f rises in steps of height 1, from n at the lower end to m at the upper one. For a slope k >= 0 the least of
    f(x) - k x is at the right end of a step. Those are (i + 1/2, i) for i < m, which are on one line, so the first or
    the last of them is least, and (high, m). The offset is the least of the three, less its rounding: it holds for
    every k. The default k is that of the edge of the lower convex hull above the middle of the interval, which leaves
    the least area. By symmetry for the upper line. A point between two cells counts for both, as float32 may round it
    either way. Within one cell the lines are exact. At alpha 0 a line is flat, at alpha 1 as steep as the hull, but
    at most as steep as the default one, or 1.
    """

    low: float
    high: float
    odd: bool = False

    def __post_init__(self) -> None:
        if not self.low <= self.high or self.low % 1 or self.high % 1:
            raise ValueError(
                f"low and high must be whole numbers, and low at most high, got {self.low} and {self.high}"
            )

    @property
    def ends(self) -> tuple[float, float]:
        """The numbers below and above which all inputs have the first and the last code."""
        return self.low + 0.5, self.high - 0.5

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        rounded = torch.round(x + 1) - 1 if self.odd else torch.round(x)
        return rounded.clamp(self.low, self.high)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        edge = EDGE * (1 + low.abs().maximum(high.abs()))
        return self((low - edge).nan_to_num(self.low)), self((high + edge).nan_to_num(self.high))

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        below, above = (None, None) if alpha is None else alpha
        first, last = (end.detach() for end in self.interval(low, high))
        lower_slope, lower_offset = _lower(first, last, low, high, below)
        upper_slope, upper_offset = _lower(-last, -first, -high, -low, above)
        return Lines(lower_slope, lower_offset, upper_slope, -upper_offset)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        first, last = self.interval(low, high)
        return first < last

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> None:
        """Exact: the boxes hold what float32 computes before."""
        return None


def _lower(first: Tensor, last: Tensor, low: Tensor, high: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
    """Choose a slope, and compute its offset below the steps from ``first`` to ``last``."""
    edge = EDGE * (1 + low.abs().maximum(high.abs()))
    start, turn, end = first + 0.5, last - 0.5, high + edge
    least = 1 / STEEPEST
    across, last_one = (last - first) / (end - start).clamp_min(least), 1 / (end - turn).clamp_min(least)
    convex, middle = last_one >= 1, (low + high) / 2
    inner = torch.where(middle <= turn, 1.0, last_one) if alpha is None else torch.ones_like(low)
    hull = torch.where(convex, torch.where(last - first > 1, inner, last_one), across)
    steps = last > first
    slope = torch.where(steps & (middle > start), hull, 0.0)
    if alpha is not None:
        top = torch.where(convex, last_one, across)
        slope = torch.where(steps, alpha * torch.minimum(top, hull.clamp_min(1.0)), 0.0)
    offset = torch.minimum(first - slope * torch.minimum(start, end), last - slope * end)
    offset = torch.where(steps, torch.minimum(offset, last - 1 - slope * turn), offset)
    size = first.abs().maximum(last.abs()) + slope * (1 + low.abs().maximum(high.abs()))
    return slope, offset - torch.where(steps, 8 * torch.finfo(low.dtype).eps * size, 0.0)
