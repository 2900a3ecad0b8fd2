"""Relax relu(s) - relu(t), for the same neuron of two networks of one architecture."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.operators import Interval, Paired, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.rows import Rows

#: Planes move outward by this many units in the last place of the size of the box, which covers their rounding.
SLACK = 16


def relu_difference(t: Interval, s: Interval, d: Interval) -> Interval:
    """Bound relu(s) - relu(t) for t, s and d = s - t in their boxes."""
    # relu(x) >= x, with equality where x >= 0: g >= d where t >= 0, and g <= d where s >= 0.
    least = torch.where(t.low >= 0, d.low, d.low.clamp_max(0))
    most = torch.where(s.low >= 0, d.high, d.high.clamp_min(0))
    low = torch.maximum(s.low.relu() - t.high.relu(), least)
    high = torch.minimum(s.high.relu() - t.low.relu(), most)
    return Interval(torch.minimum(low, high), torch.maximum(low, high))


class ReluDifference(Paired):
    """g = relu(s) - relu(t) over the hexagon of the points with t, s and d = s - t in their boxes.

    The inputs are relu(t), relu(s), t, s and d. Where either is stable, relu's own lines are best. Elsewhere the axes
    cut the hexagon into parts on which g is linear, so a plane with any slopes is below g if it is at the corners of
    these parts. Two numbers from 0 to 1 choose the slopes: the slope in s, and the share by which that in t is moved
    from the best one for small d to that of relu's chord at t. ``alpha`` gives both for each entry,
    ``(batch, 2, *shape)``, below and above. By default the plane that is nearest to g in the middle is taken.
    """

    def forward(self, *values: Tensor) -> Tensor:
        return values[1] - values[0]

    def interval(self, *boxes: Interval) -> Interval:
        return relu_difference(*boxes[2:])

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Bool[Tensor, "batch *shape"] | None]:
        _, _, t, s, _ = boxes
        return [None, None, Relu().is_nonlinear(*t), Relu().is_nonlinear(*s), self.open(t, s)]

    @staticmethod
    def open(t: Interval, s: Interval) -> Bool[Tensor, "batch *shape"]:
        """Select the entries at which neither neuron is stable."""
        return Relu().is_nonlinear(*t) & Relu().is_nonlinear(*s)

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> None:
        """Exact: both networks' relu is, and no machine subtracts them."""
        return None

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "PlanePair":
        _, _, t, s, d = boxes
        at_t, at_s = Relu().lines(*t), Relu().lines(*s)
        none = torch.zeros_like(at_t.lower_slope)
        below = Plane(at_t.upper_slope, at_s.lower_slope, at_s.lower_offset - at_t.upper_offset, none, none, none)
        above = Plane(at_t.lower_slope, at_s.upper_slope, at_s.upper_offset - at_t.lower_offset, none, none, none)
        opened = self.open(t, s)
        if not bool(opened.any()):
            return PlanePair(below, above)
        t, s, d = (Interval(box.low[opened], box.high[opened]) for box in (t, s, d))
        free = [None if each is None else (each[:, 0][opened], each[:, 1][opened]) for each in alpha or (None, None)]
        lower = _below(t, s, d, free[0])
        upper = _below(s, t, Interval(-d.high, -d.low), free[1])  # -g is the difference in the other order
        upper = upper._replace(in_t=upper.in_s, in_s=upper.in_t, offset=-upper.offset)
        place = (opened,)
        return PlanePair(
            Plane(*(old.index_put(place, new) for old, new in zip(below, lower, strict=True))),
            Plane(*(old.index_put(place, new) for old, new in zip(above, upper, strict=True))),
        )


class Plane(NamedTuple):
    """The plane in_s s - in_t t + offset.

    ``gap`` is the largest distance of g from it, and ``slope`` and ``share`` are the numbers that chose it; 0 where
    either is stable.
    """

    in_t: Float[Tensor, "*shape"]
    in_s: Float[Tensor, "*shape"]
    offset: Float[Tensor, "*shape"]
    gap: Float[Tensor, "*shape"]
    slope: Float[Tensor, "*shape"]
    share: Float[Tensor, "*shape"]


class PlanePair(NamedTuple):
    """A plane below g and one above."""

    below: Plane
    above: Plane

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        negative = rows.values.clamp_max(0)
        positive = rows.values - negative

        def mixed(below: Tensor, above: Tensor) -> Rows:
            values = positive * rows.gather(below, samples) + negative * rows.gather(above, samples)
            return rows.take(values).outside(clean=True)

        t, s = mixed(-self.below.in_t, -self.above.in_t), mixed(self.below.in_s, self.above.in_s)
        constant = rows.take(positive).dot(self.below.offset, samples)
        return Pushed([None, None, t, s, None], constant + rows.take(negative).dot(self.above.offset, samples))


def _below(t: Interval, s: Interval, d: Interval, free: tuple[Tensor, Tensor] | None) -> Plane:
    """Return the plane below g with the given slope and share, or the best of some; each box of t and s holds 0."""
    slope, share = (part[None] for part in free) if free else _candidates(d)
    corners_t, corners_s = _corners(t, s, d)
    g = corners_s.relu() - corners_t.relu()
    width = t.high - t.low
    # for small d the hexagon is a strip, at whose ends g - slope d is at least -slope d.high and (1 - slope) d.low
    small = slope - torch.lerp(d.low, d.high, slope) / width
    reach = (2 * (d.high - d.low) / width).clamp_max(1.0)  # the chord at t is of no use for small d
    in_t = torch.lerp(small, t.high / width, share * reach).clamp(0.0, 1.0)
    distance = g[:, None] + in_t * corners_t[:, None] - slope * corners_s[:, None]
    offset, most = distance.aminmax(dim=0)
    size = width + s.high - s.low + d.low.abs() + d.high.abs()
    slack = SLACK * torch.finfo(size.dtype).eps * size
    found = Plane(in_t, slope, offset - slack, most - offset, slope, share)
    if len(slope) == 1:
        return Plane(*(part[0] for part in found))
    height = slope * corners_s[:12].mean(0) - in_t * corners_t[:12].mean(0) + offset
    best = torch.cat([height[:1] + 1e-9 * size, height[1:]]).argmax(0, keepdim=True)  # of equal ones the first
    return Plane(*(part.gather(0, best)[0] for part in found))


def _candidates(d: Interval) -> tuple[Float[Tensor, "some n"], Float[Tensor, "some n"]]:
    """Return slopes and shares: the chord of min(d, 0), which is best for narrow strips, and all extremes."""
    down, up = -d.low.clamp_max(0), d.high.clamp_min(0)
    chord = down / (down + up).clamp_min(torch.finfo(d.low.dtype).tiny)
    zero, one = torch.zeros_like(chord), torch.ones_like(chord)
    return torch.stack([chord, zero, one, chord, zero, one]), torch.stack([zero, one, one, one, zero, zero])


def _corners(t: Interval, s: Interval, d: Interval) -> tuple[Float[Tensor, "corners n"], Float[Tensor, "corners n"]]:
    """Return all corners of the hexagon, and of its parts between the axes; others that are returned do no harm.

    Every corner is an end of a segment in which the hexagon meets an end of t or s, or an axis, or it is the origin.
    """
    zero = torch.zeros_like(t.low)
    ts, ss = torch.stack([t.low, t.high, zero]), torch.stack([s.low, s.high, zero])
    s_low, s_high = torch.maximum(s.low, ts + d.low), torch.minimum(s.high, ts + d.high)
    t_low, t_high = torch.maximum(t.low, ss - d.high), torch.minimum(t.high, ss - d.low)
    origin = torch.maximum(torch.minimum(zero, s_high[2]), s_low[2])
    return torch.cat([ts, ts, t_low, t_high, zero[None]]), torch.cat([s_low, s_high, ss, ss, origin[None]])
