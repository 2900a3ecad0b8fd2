"""Relax piecewise linear functions, and hardswish, which has one nonlinear piece."""

from dataclasses import dataclass
from math import inf

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.sigmoidal import Piece, Span, clamped, hinged, image, replaced, rounding, supporting
from verifiers.graph.rounding import LARGEST, accumulated, magnitude, nearest, representable, steps_of


@dataclass(frozen=True)
class Relu:
    """max(x, 0); the free lower slope of an unstable neuron is ``alpha``, by default 1 if high > -low, else 0.

    Sound: the lower line is k x with 0 <= k <= 1. The upper line is the chord from (low, 0) to (high, high). Its slope
    and offset each move up by more than their rounding, so it holds as stored. (A slope clamped to 1 gives x - low.)
    Stable neurons have the exact line. The width high - low must not overflow.
    """

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x.relu()

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return low.relu(), high.relu()

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        if alpha is None:
            free = (high > -low).to(low.dtype)
        else:
            free = alpha[0] * self.is_nonlinear(low, high) + ((low >= 0) & (high > 0))  # cheaper than torch.where
        info = torch.finfo(low.dtype)
        up = 1 + 4 * info.eps
        negative, positive = low.clamp_max(0.0), high.clamp_min(0.0)
        width = positive - negative
        thin = (width <= info.tiny) & (high > 0)
        slope = (positive / width.clamp_min(info.tiny) * up + thin).clamp_max(1.0)
        return Lines(free, torch.zeros_like(low), slope, -negative * slope * up)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (low < 0) & (high > 0)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> None:
        """Exact."""
        return None


@dataclass(frozen=True, eq=False)
class LeakyRelu:
    """x if x > 0 else slope x, for any slope: a number, or a tensor that broadcasts to the input (PReLU).

    Sound: f(x) = slope x + (1 - slope) max(x, 0), so :class:`Relu`'s lines carry over, swapped if slope > 1. The line
    through 0 may have any slope between ``slope`` and 1, and is exact; the chord moves outward by its rounding. The
    free line is the one through 0. Its slope is 1 at alpha 1; by default it is 1 if high > -low, else ``slope``.
    """

    slope: float | Tensor = 0.01

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.where(x > 0, x, self.slope * x)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        left, right, kink = self(low), self(high), self(clamped(0.0, low, high))
        return left.minimum(right).minimum(kink), left.maximum(right).maximum(kink)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        slope, one = self._slope(low).expand_as(low), torch.ones_like(low)
        convex = slope <= 1
        free = None if alpha is None else torch.where(convex, *alpha)
        through, zero, chord, above = Relu().lines(low, high, None if free is None else (free, free))
        size = (1 + slope.abs()) * low.abs().maximum(high.abs())
        slack = torch.where(self.is_nonlinear(low, high), rounding(size), 0.0)
        through, chord = torch.lerp(slope, one, through), torch.lerp(slope, one, chord)
        above = (1 - slope) * above + torch.where(convex, slack, -slack)
        return Lines(
            torch.where(convex, through, chord),
            torch.where(convex, zero, above),
            torch.where(convex, chord, through),
            torch.where(convex, above, zero),
        )

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (low < 0) & (high > 0) & (self._slope(low) != 1)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor | None:
        """gamma(1) |slope x| where x may be negative, gamma(2) if the slope is rounded; exact for slopes 0, 1, -1."""
        slope = self._slope(low)
        if not (steps := steps_of(slope)):
            return None
        return accumulated(slope.abs() * -low.clamp_max(0.0), steps, tiny=(low < 0).to(low.dtype))

    def _slope(self, like: Tensor) -> Tensor:
        return torch.as_tensor(self.slope, dtype=like.dtype, device=like.device)


class Abs(LeakyRelu):
    """|x|, the leaky ReLU of slope -1."""

    def __init__(self) -> None:
        super().__init__(-1.0)


@dataclass(frozen=True)
class Clamp:
    """min(max(x, minimum), maximum) with minimum <= maximum; None means no bound.

    Sound: by :func:`hinged`, with the kink at ``minimum`` for the lower line (f is concave above it) and at ``maximum``
    for the upper one. On one straight piece the line is exact.
    """

    minimum: float | None = -1.0
    maximum: float | None = 1.0

    def __post_init__(self) -> None:
        if not self.ends[0] <= self.ends[1]:
            raise ValueError(f"minimum must be at most maximum, got {self.minimum} and {self.maximum}")

    @property
    def ends(self) -> tuple[float, float]:
        """Both bounds; infinite if there is none."""
        return -inf if self.minimum is None else self.minimum, inf if self.maximum is None else self.maximum

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x.clamp(*self.ends)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return self(low), self(high)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        (minimum, maximum), (lower_alpha, upper_alpha) = self.ends, alpha or (None, None)
        nonlinear, inside = self.is_nonlinear(low, high), (low >= minimum) & (high <= maximum)
        slope, value = inside.to(low.dtype), torch.where(inside, 0.0, self(low))
        relaxed = Lines(
            *hinged(self, 1.0, (low, high), minimum, lower_alpha),
            *hinged(self, -1.0, (low, high), maximum, upper_alpha),
        )
        return replaced(relaxed, ~nonlinear, slope, value, value)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        minimum, maximum = self.ends
        return ((low < minimum) & (high > minimum)) | ((low < maximum) & (high > maximum))

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor | None:
        """The distance of an end that may be reached from float32; exact for ends that are float32 numbers."""
        errors = [torch.zeros_like(low)]
        for end, reached in zip(self.ends, (low, -high), strict=True):
            if not representable(end):
                rounded = float(nearest(torch.tensor(end, dtype=torch.float64)))
                farther = max(end, rounded) if reached is low else max(-end, -rounded)
                errors.append(torch.where(reached < farther, abs(rounded - end), 0.0).to(low))
        return None if len(errors) == 1 else torch.stack(errors).amax(0)


@dataclass(frozen=True)
class HardSigmoid:
    """min(max(x + 3, 0), 6) / 6.

    Sound: it is a sixth of a clamp to [-3, 3], plus 1/2, and so are its lines. Between the kinks and across them the
    lines move outward by the rounding of terms up to 1.
    """

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.hardsigmoid(x)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return self(low), self(high)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        lower_slope, lower_offset, upper_slope, upper_offset = Clamp(-3.0, 3.0).lines(low, high, alpha)
        size = 1 + low.abs().maximum(high.abs()) * (lower_slope.abs() + upper_slope.abs())
        slack = torch.where((low <= 3) & (high >= -3), rounding(size), 0.0)
        return Lines(lower_slope / 6, lower_offset / 6 + 0.5 - slack, upper_slope / 6, upper_offset / 6 + 0.5 + slack)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return Clamp(-3.0, 3.0).is_nonlinear(low, high)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(4) |f|: a sum, which keeps its sign, the rounded constant 1/6 and a product, or a quotient."""
        return accumulated(size, 4)


@dataclass(frozen=True)
class HardSwish:
    """x min(max(x + 3, 0), 6) / 6: 0 up to -3, x from 3 on, a parabola between them.

    Sound: :func:`supporting` gives the lower line; the parabola is the convex piece, and straight parts adjoin it at
    downward kinks. :func:`hinged` gives the upper one, as -f is concave or straight between those kinks. It turns at
    the kink that the chord may pass below: the one at -3 if the chord is flatter than 1/2. On the straight parts the
    line is exact.
    """

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.hardswish(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the derivative of the parabola, up to its ends."""
        return (2 * x.clamp(-3.0, 3.0) + 3) / 6

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        least, most = image(self, low, high, -1.5)
        straight = self._straight(low, high)
        return torch.where(straight, self(low), least), torch.where(straight, self(high), most)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        (lower_alpha, upper_alpha), span = alpha or (None, None), Span.of(self, low, high)
        left, right = clamped(-3.0, low, high), clamped(3.0, low, high)
        kink = torch.where(span.chord < 0.5, -3.0, 3.0).to(low)
        relaxed = Lines(
            *supporting(self, 1.0, span, Piece(left, right, left, right), lower_alpha),
            *hinged(self, -1.0, (low, high), kink, upper_alpha, others=(-3.0, 3.0)),
        )
        return replaced(relaxed, self._straight(low, high), (low >= 3).to(low.dtype), 0.0, 0.0)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (low < high) & ~self._straight(low, high)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(6) |f|: a sum, which keeps its sign, the rounded constant 1/6 and two products; 6 |x| may overflow."""
        moved = magnitude((low, high))
        return torch.where(6 * moved <= LARGEST, accumulated(size, 6, tiny=2 + 2 * moved), inf)

    def _straight(self, low: Tensor, high: Tensor) -> Tensor:
        return (high <= -3) | (low >= 3)
