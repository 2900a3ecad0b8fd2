"""Relax relu(t + d) - relu(t), for two networks of one architecture."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.rows import Rows


class ReluDifference:
    """g = relu(t + d) - relu(t), given boxes of t, d and s = t + d.

    As ReLU is monotone and has slopes in [0, 1], g is between min(d, 0) and max(d, 0). Candidates for the plane above:
    the chord of max(d, 0), and relu's upper line at s less its lower line at t. Candidates for the plane below: the
    chord of min(d, 0), and the lower line at s less the upper line at t. All are sound. The chosen one is closer to g
    at the centre of the box, and therefore encloses less volume. If relu is a line at both s and t, so is g, and the
    difference of those lines is exact.
    """

    def forward(self, *values: Tensor) -> Tensor:
        t, _, s = values
        return s.relu() - t.relu()

    def interval(self, *boxes: Interval) -> Interval:
        t, d, s = boxes
        # relu(x) >= x, with equality where x >= 0: g >= d where t >= 0, and g <= d where s >= 0.
        least = torch.where(t.low >= 0, d.low, d.low.clamp_max(0))
        most = torch.where(s.low >= 0, d.high, d.high.clamp_min(0))
        low = torch.maximum(s.low.relu() - t.high.relu(), least)
        high = torch.minimum(s.high.relu() - t.low.relu(), most)
        return Interval(torch.minimum(low, high), torch.maximum(low, high))

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Bool[Tensor, "batch *shape"]]:
        t, _, s = boxes
        nonlinear = ((t.low < 0) & (t.high > 0)) | ((s.low < 0) & (s.high > 0))
        return [nonlinear, nonlinear, nonlinear]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> None:
        """Exact: both networks' relu is, and no machine subtracts them."""
        return None

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Planes":
        t, d, s = boxes
        at_t, at_s = Relu().lines(*t), Relu().lines(*s)
        apart = _apart(at_t, at_s)
        chord = _chords(d)
        centers = [box.center for box in boxes]
        above_apart = sum(slope * c for slope, c in zip(apart.above, centers, strict=True)) + apart.above_offset
        above_chord = chord.above[1] * centers[1] + chord.above_offset
        below_apart = sum(slope * c for slope, c in zip(apart.below, centers, strict=True)) + apart.below_offset
        below_chord = chord.below[1] * centers[1] + chord.below_offset
        nonlinear = self.inputs_to_tighten(boxes)[0]
        return apart.choose(chord, nonlinear & (above_chord < above_apart), nonlinear & (below_chord > below_apart))


class _Planes:
    """A plane above and one below in (t, d, s)."""

    def __init__(
        self, below: Sequence[Tensor], below_offset: Tensor, above: Sequence[Tensor], above_offset: Tensor
    ) -> None:
        self.below, self.below_offset, self.above, self.above_offset = below, below_offset, above, above_offset

    def choose(self, other: "_Planes", above: Tensor, below: Tensor) -> "_Planes":
        """Replace the planes by the other's where the masks are True."""
        return _Planes(
            [torch.where(below, b, a) for a, b in zip(self.below, other.below, strict=True)],
            torch.where(below, other.below_offset, self.below_offset),
            [torch.where(above, b, a) for a, b in zip(self.above, other.above, strict=True)],
            torch.where(above, other.above_offset, self.above_offset),
        )

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        values, negative = rows.values, rows.values.clamp_max(0)
        positive = values - negative
        inputs: list[Rows | None] = [
            rows.take(positive * rows.gather(below, samples) + negative * rows.gather(above, samples)).outside(
                clean=True
            )
            for below, above in zip(self.below, self.above, strict=True)
        ]
        constant = rows.take(positive).dot(self.below_offset, samples)
        return Pushed(inputs, constant + rows.take(negative).dot(self.above_offset, samples))


def _apart(at_t: Lines, at_s: Lines) -> _Planes:
    """Return relu's lines at s less those at t."""
    none = torch.zeros_like(at_t.lower_slope)
    return _Planes(
        [-at_t.upper_slope, none, at_s.lower_slope],
        at_s.lower_offset - at_t.upper_offset,
        [-at_t.lower_slope, none, at_s.upper_slope],
        at_s.upper_offset - at_t.lower_offset,
    )


def _chords(d: Interval) -> _Planes:
    """Return the chords of min(d, 0) below and of max(d, 0) above, as relu's lines at -d and at d."""
    up, down, none = Relu().lines(*d), Relu().lines(-d.high, -d.low), torch.zeros_like(d.low)
    return _Planes([none, down.upper_slope, none], -down.upper_offset, [none, up.upper_slope, none], up.upper_offset)
