"""Relax comparisons with a constant, and the choice between two values."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.relaxations.products import sum_to
from verifiers.graph.rounding import nearest
from verifiers.graph.rows import Rows, Shape


@dataclass(frozen=True)
class Step:
    """1 where x > threshold (x >= threshold unless ``strict``), else 0.

    Sound: on an interval on one side of the threshold and of the float32 number next to it the value is known;
    otherwise, and where an end is nan, it is between 0 and 1.
    """

    threshold: float = 0.0
    strict: bool = True

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (x > self.threshold if self.strict else x >= self.threshold).to(x.dtype)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        first, last = self._edges()
        if self.strict:
            return (low > last).to(low.dtype), (~(high <= first)).to(low.dtype)
        return (low >= last).to(low.dtype), (~(high < first)).to(low.dtype)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        flat, (least, most) = torch.zeros_like(low), self.interval(low, high)
        return Lines(flat, least, flat, most)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        least, most = self.interval(low, high)
        return least < most

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> None:
        """Exact: the edges hold the threshold as float32 rounds it."""
        return None

    def _edges(self) -> tuple[float, float]:
        rounded = float(nearest(torch.tensor(self.threshold, dtype=torch.float64)))
        return min(self.threshold, rounded), max(self.threshold, rounded)


class Select:
    """a where the mask is 1, b where it is 0; all three broadcast to one shape.

    Where the mask is known, the value is a or b. Elsewhere it is between min(a, b) = b - relu(b - a) and max(a, b) =
    b + relu(a - b), whose chords are the planes.
    """

    def __init__(self, shapes: Sequence[Shape], after: Shape) -> None:
        self.shapes, self.after = list(shapes), after

    def forward(self, *values: Tensor) -> Tensor:
        mask, a, b = self._aligned(values)
        return torch.where(mask > 0.5, a, b)

    def interval(self, *boxes: Interval) -> Interval:
        mask, a, b = (Interval(*self._pair(box, i)) for i, box in enumerate(boxes))
        low = torch.where(mask.low > 0.5, a.low, torch.where(mask.high < 0.5, b.low, torch.minimum(a.low, b.low)))
        high = torch.where(mask.low > 0.5, a.high, torch.where(mask.high < 0.5, b.high, torch.maximum(a.high, b.high)))
        return Interval(low, high)

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor | None]:
        mask, a, b = (Interval(*self._pair(box, i)) for i, box in enumerate(boxes))
        unknown = (mask.low < 0.5) & (mask.high > 0.5) & ((a.low < b.high) | (b.low < a.high))
        return [None, *(self._any(unknown, i) for i in (1, 2))]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> None:
        """Exact."""
        return None

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Between":
        mask, a, b = (Interval(*self._pair(box, i)) for i, box in enumerate(boxes))
        known, one = (mask.low > 0.5) | (mask.high < 0.5), (mask.low > 0.5).to(a.low.dtype)
        over, under = Relu().lines(a.low - b.high, a.high - b.low), Relu().lines(b.low - a.high, b.high - a.low)
        upper = torch.where(known, one, over.upper_slope), torch.where(known, 0.0, over.upper_offset)
        lower = torch.where(known, one, under.upper_slope), torch.where(known, 0.0, -under.upper_offset)
        return _Between(self, lower, upper)

    def _pair(self, box: Interval, i: int) -> tuple[Tensor, Tensor]:
        return self._wide(box.low, i), self._wide(box.high, i)

    def _aligned(self, values: Sequence[Tensor]) -> list[Tensor]:
        return [self._wide(value, i) for i, value in enumerate(values)]

    def _wide(self, value: Tensor, i: int) -> Tensor:
        shape = self.shapes[i]
        ones = (1,) * (len(self.after) - len(shape))
        return value.reshape(len(value), *ones, *shape).expand(len(value), *self.after)

    def _any(self, mask: Tensor, i: int) -> Tensor:
        return sum_to(mask.to(torch.float64), self.shapes[i]).reshape(len(mask), *self.shapes[i]) > 0


class _Between:
    """The planes k a + (1 - k) b + offset, below and above."""

    def __init__(self, select: Select, lower: tuple[Tensor, Tensor], upper: tuple[Tensor, Tensor]) -> None:
        self.select, self.lower, self.upper = select, lower, upper

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        dense = rows.dense(self.select.after)
        values = dense.values
        positive = values.clamp_min(0)
        negative = values - positive
        down, up = (dense.gather(part[0], samples) for part in (self.lower, self.upper))
        to_a = positive * down + negative * up
        constant = positive * dense.gather(self.lower[1], samples) + negative * dense.gather(self.upper[1], samples)
        shapes = self.select.shapes
        pushed = [None, Rows(sum_to(to_a, shapes[1])), Rows(sum_to(values - to_a, shapes[2]))]
        return Pushed(pushed, constant.flatten(1).sum(1))
