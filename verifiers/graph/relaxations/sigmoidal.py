"""Relax curves that bend both ways, such as tanh and the logistic function: lines whose offset follows from the slope.

Every relaxation here rests on one fact: a line of any slope k is below f if its offset is at most the least value of
f(x) - k x on [low, high]. A heuristic may therefore choose the slopes, and only offsets need a proof. Everything is
written for lower lines; an upper line of f is a lower line of -f, with ``sign`` = -1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from math import inf, pi, sqrt
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.rounding import LIBRARY, NORMAL, TINY, accumulated, counted

#: Offsets move outward by this many units of rounding of the largest term they were computed from.
SLACK = 16.0
#: The search for tangent points covers this length of an unbounded piece; beyond it the curves here are lines.
REACH = 24.0
#: Halvings per search for a tangent point; they affect how tight a line is, never its soundness.
STEPS = 12


@runtime_checkable
class Curve(Protocol):
    """A function with its derivative (at a kink that bounds a piece, the one from inside the piece)."""

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply the function."""

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the derivative."""


class Span(NamedTuple):
    """An interval with the values at its ends and the chord's slope, which every line on it needs."""

    low: Tensor
    high: Tensor
    at_low: Tensor
    at_high: Tensor
    chord: Tensor

    @classmethod
    def of(cls, curve: Curve, low: Tensor, high: Tensor, unit: float | Tensor = 1.0) -> "Span":
        """Build the span. The chord's slope is the derivative in the middle if the interval is narrow compared with
        ``unit``, the length on which the curve bends: the quotient would be rounding noise there."""
        at_low, at_high, width = curve(low), curve(high), high - low
        narrow = width <= torch.finfo(low.dtype).eps ** (1 / 3) * unit
        chord = (at_high - at_low) / torch.where(narrow, 1.0, width)
        return cls(low, high, at_low, at_high, torch.where(narrow, curve.derivative(low + width / 2), chord))


class Piece(NamedTuple):
    """A part [left, right] of the interval on which sign * f is convex; tangent points are between first and last."""

    left: Tensor
    right: Tensor
    first: Tensor
    last: Tensor


def clamped(point: float, low: Tensor, high: Tensor) -> Tensor:
    """Return the point of [low, high] nearest to a given one."""
    return low.clamp_min(point).minimum(high)


def rounding(size: Tensor) -> Tensor:
    """Compute the slack for a result of terms of at most this size; finite, and without a gradient."""
    info = torch.finfo(size.dtype)
    return (SLACK * info.eps) * size.detach().clamp_max(info.max)


def widened(low: Tensor, high: Tensor, noise: float | Tensor = 0.0) -> tuple[Tensor, Tensor]:
    """Move a range outward by its rounding. The shift is relative, so that a positive range stays positive; an end
    that overflowed inwards becomes the largest number."""
    limit = torch.finfo(low.dtype).max
    low, high = low.clamp_max(limit), high.clamp_min(-limit)
    return low - rounding(low.abs() + noise), high + rounding(high.abs() + noise)


def image(
    curve: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, *turning: float, noise: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """Compute the range of a curve that is monotone between its turning points, from values there and at the ends."""
    values = [curve(low), curve(high), *(curve(clamped(point, low, high)) for point in turning)]
    return widened(reduce(torch.minimum, values), reduce(torch.maximum, values), noise)


def offset(sign: float | Tensor, slope: Tensor, *points: tuple[Tensor, Tensor], noise: float | Tensor = 0.0) -> Tensor:
    """Compute the best offset, less rounding, of a line below sign * f at points (x, f(x)) that include the ends."""
    least = reduce(torch.minimum, (sign * (value - slope * x) for x, value in points))
    size = reduce(torch.maximum, (value.abs() + (slope * x).abs() for x, value in points))
    return sign * (least - rounding(size + noise) - torch.finfo(size.dtype).tiny)


def replaced(lines: Lines, where: Tensor, slope: float | Tensor, lower: float | Tensor, upper: float | Tensor) -> Lines:
    """Replace lines by parallel ones of this slope with these offsets where the mask is True."""
    own = (torch.as_tensor(x, dtype=lines.lower_slope.dtype, device=where.device) for x in (slope, lower, slope, upper))
    return Lines(*(torch.where(where, x, line) for x, line in zip(own, lines, strict=True)))


def supporting(
    curve: Curve, sign: float, span: Span, piece: Piece, alpha: Tensor | None, noise: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """Find a line below sign * f, which is convex on the piece and, on either side of it, concave (or decreasing
    towards the end, once the line is subtracted).

    Soundness, for h = sign * (f - k x) with any slope k: outside the piece, h is least at an end of the interval or at
    the piece. On the piece, h is above its tangent at any point t, so h >= h(t) + min over the piece's two ends e of
    h'(t) (e - t). The offset is the least of h(low), h(high) and that bound, less rounding, for any t.

    Tightness: with the chord's slope, h is least on the piece at ``parallel``. If it is not below the ends there, the
    chord is the best line. Otherwise the candidates are the tangents at the points from ``first`` to ``last``, where
    they stop passing below one of the ends. ``alpha`` selects one; the one nearest the middle encloses the least area.
    The points found by search carry no gradient; the ends of the piece do.
    """
    low, high, at_low, at_high, chord = span

    def bound(t: Tensor, tilt: Tensor) -> Tensor:
        return curve(t) + sign * torch.minimum(tilt * (piece.left - t), tilt * (piece.right - t))

    def below(anchor: Tensor, value: Tensor) -> Callable[[Tensor], Bool[Tensor, "*shape"]]:
        return lambda t: sign * (curve(t) + curve.derivative(t) * (anchor - t) - value) <= 0

    parallel = _farthest(piece.first, piece.last, lambda t: sign * (curve.derivative(t) - chord) <= 0)
    with torch.no_grad():
        least = bound(parallel, sign * (curve.derivative(parallel) - chord))
        ends = torch.minimum(sign * (at_low - chord * low), sign * (at_high - chord * high))
        straight = sign * (least - chord * parallel) >= ends
    first = _farthest(parallel.detach(), piece.first, below(low, at_low))
    last = _farthest(parallel.detach(), piece.last, below(high, at_high))
    t = torch.lerp(first, last, alpha) if alpha is not None else (low / 2 + high / 2).maximum(first).minimum(last)
    t = torch.where(straight, parallel.detach(), t)
    slope = torch.where(straight, chord, curve.derivative(t))
    tilt = torch.where(straight, sign * (curve.derivative(t) - chord), 0.0)
    return slope, offset(sign, slope, (low, at_low), (high, at_high), (t, bound(t, tilt)), noise=noise)


def _farthest(start: Tensor, end: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the end if the condition holds there, else the farthest point from the start that halving reaches."""
    with torch.no_grad():
        at_end, near, far = holds(end), start, end
        for _ in range(0 if bool(at_end.all()) else STEPS):
            middle = near + (far - near) / 2
            kept = holds(middle)
            near, far = torch.where(kept, middle, near), torch.where(kept, far, middle)
    return torch.where(at_end, end, near)


def hinged(
    curve: Callable[[Tensor], Tensor],
    sign: float,
    ends: tuple[Tensor, Tensor],
    at: float | Tensor,
    alpha: Tensor | None,
    others: tuple[float, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Find a line below sign * f, which is concave or straight between its kinks: the kink ``at``, where the line may
    turn, and the ``others``.

    Sound: less a line, sign * f is still concave between kinks, so it is least at an end or at a kink. If the kink is
    below the chord, the lines through it are free, from the slope of the left segment to that of the right.
    """
    low, high = ends
    kink = torch.minimum(torch.maximum(low, torch.as_tensor(at, dtype=low.dtype, device=low.device)), high)
    points = [(x, curve(x)) for x in (low, kink, high)]
    (_, left_value), (_, kink_value), (_, right_value) = points
    chord = _quotient(right_value - left_value, high - low)
    left = torch.where(kink > low, _quotient(kink_value - left_value, kink - low), chord)
    right = torch.where(kink < high, _quotient(right_value - kink_value, high - kink), chord)
    free = torch.where(low / 2 + high / 2 > kink, right, left) if alpha is None else torch.lerp(left, right, alpha)
    slope = torch.where((sign * (right - left) > 0) & (low < kink) & (kink < high), free, chord)
    points += [(x, curve(x)) for x in (clamped(other, low, high) for other in others)]
    return slope, offset(sign, slope, *points)


def _quotient(rise: Tensor, run: Tensor) -> Tensor:
    """Return rise / run; 0 if the run is so short that the gradient would overflow, where any slope will do."""
    wide = run > torch.finfo(run.dtype).tiny ** 0.5
    return torch.where(wide, rise / torch.where(wide, run, 1.0), 0.0)


@dataclass(frozen=True)
class SShape:
    """An increasing curve, convex below 0 and concave above.

    Sound: the piece of :func:`supporting` is [low, 0] for the lower line, with a concave part above it, and [0, high]
    for the upper one, cut at the interval. Values and derivatives are accurate to a few units of rounding, even in the
    tails, and the derivative's rounding times the width is below the slack of ``slope * x``.
    """

    #: The roundings of float32, as in :class:`verifiers.graph.relaxations.convex.Curved`.
    steps: ClassVar[int | float] = inf

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        raise NotImplementedError

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the derivative from the logistic function at x and -x: 1 - tanh^2 would lose the tails."""
        raise NotImplementedError

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return widened(self(low), self(high))

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        span, middle = Span.of(self, low, high), clamped(0.0, low, high)
        lower_alpha, upper_alpha = alpha or (None, None)
        convex = Piece(low, middle, low.maximum(middle - REACH), middle)
        concave = Piece(middle, high, middle, high.minimum(middle + REACH))
        return Lines(
            *supporting(self, 1.0, span, convex, lower_alpha), *supporting(self, -1.0, span, concave, upper_alpha)
        )

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return low < high

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(steps) |f|."""
        return counted(self, self.steps, size)


class Tanh(SShape):
    """tanh(x), within 4 ulp."""

    steps = LIBRARY

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.tanh(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x)


class Sigmoid(SShape):
    """1 / (1 + exp(-x))."""

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(x) * torch.sigmoid(-x)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(12) |f|: exp of 4 ulp, a sum and a quotient; 2^-126 where exp(-x) overflows and the result is 0."""
        return accumulated(size, LIBRARY + 4, tiny=NORMAL / TINY)


class Erf(SShape):
    """erf(x)."""

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.erf(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.exp(-x * x) * (2 / sqrt(pi))

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """24 units of roundoff, however small the value is, as for :class:`verifiers.graph.relaxations.gelu.Gelu`."""
        return accumulated(torch.ones_like(size), 24)
