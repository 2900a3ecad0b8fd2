"""Relax powers, and roots of sums of squares."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.convex import Curved, Sqrt
from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.sigmoidal import Piece, Span, clamped, offset, replaced, supporting, widened
from verifiers.graph.rounding import LIBRARY, accumulated, representable


class Root(Sqrt):
    """sqrt(max(x, 0)), for sums that rounding alone may move below 0.

    Sound: the lower line is the chord of the root between max(low, 0) and high; below 0 it is negative, if it starts
    at 0. The upper line is a tangent at t >= -low, so that it is at least 0 at ``low``, and by its slope from there on.
    """

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return super().__call__(x.clamp_min(0.0))

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        return low <= high

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        least, most = widened(self(low), self(high))
        return least.clamp_min(0.0), most

    def tangent(self, low: Tensor, high: Tensor, alpha: Tensor | None) -> Tensor:
        return super().tangent(low.clamp_min(0.0), high, alpha).maximum(-low)

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        return super().chord(low.clamp_min(0.0), high)

    def _lines(self, low: Tensor, high: Tensor, alpha: Alpha | None) -> Lines:
        positive = low.clamp_min(0.0)
        chord, t = self.chord(low, high), self.tangent(low, high, None if alpha is None else alpha[1])
        slope, ends = self.derivative(t), ((positive, self(positive)), (high, self(high)))
        zero = (torch.where(low < 0, low, positive), torch.where(low < 0, 0.0, self(positive)))
        upper = offset(-1.0, slope, (t, self(t)), *ends, zero)
        return Lines(chord, offset(1.0, chord, *ends), slope, upper)


@dataclass(frozen=True)
class Power(Curved):
    """x^n for x > 0 and any n but 0 and 1: convex for n < 0 and n > 1, else concave; for all x if n is even.

    If n > 0, an interval may begin at 0; where the derivative is infinite there, the lines are the range's ends.
    """

    exponent: int | float
    headroom = 0.1

    @property
    def even(self) -> bool:
        """True for 2, 4, 6, ..., which take all numbers."""
        return self.exponent > 0 and self.exponent % 2 == 0

    @property
    def turning(self) -> tuple[float, ...]:  # type: ignore[override]
        return (0.0,) if self.even else ()

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x.pow(self.exponent)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return self.exponent * x.pow(self.exponent - 1)

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        if self.even:
            return low <= high
        return low >= 0 if self.exponent > 0 else low > 0

    def sign(self, low: Tensor) -> Tensor:
        return torch.full_like(low, -1.0 if 0 < self.exponent < 1 else 1.0)

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        return Span.of(self, low, high, self.unit if self.even else low).chord

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        return power_rounding(self.exponent, low, high, size)


@dataclass(frozen=True)
class OddPower:
    """x^n for n = 3, 5, 7, ...: increasing, concave below 0 and convex above.

    Sound: as :class:`verifiers.graph.relaxations.sigmoidal.SShape`, whose two pieces change places.
    """

    exponent: int

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x.pow(self.exponent)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the derivative."""
        return self.exponent * x.pow(self.exponent - 1)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return widened(self(low), self(high))

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        limit = torch.finfo(low.dtype).max ** (0.25 / self.exponent)
        usable, (least, most) = (low > -limit) & (high < limit), self.interval(low, high)
        low, high = torch.where(usable, low, 0.0), torch.where(usable, high, 0.0)
        span, middle = Span.of(self, low, high), clamped(0.0, low, high)
        lower_alpha, upper_alpha = alpha or (None, None)
        convex, concave = Piece(middle, high, middle, high), Piece(low, middle, low, middle)
        lines = Lines(
            *supporting(self, 1.0, span, convex, lower_alpha), *supporting(self, -1.0, span, concave, upper_alpha)
        )
        return replaced(lines, ~usable, 0.0, least, most)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return low < high

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        return power_rounding(self.exponent, low, high, size)


def power_rounding(exponent: int | float, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
    """gamma(8) |f| for a library's function, or products; (n u) |log x| |f| more for an exponent that is rounded.

    A chain of products passes through |x|^k for k up to n, which are between 1 and |f|; a reciprocal adds one rounding.
    """
    steps = torch.full_like(size, max(LIBRARY, abs(exponent) if exponent == round(exponent) else 0.0) + 1)
    if not representable(exponent):
        ends = (end.abs().clamp(1e-300, 1e300).log().abs() for end in (low, high))
        steps = steps + 2 * abs(exponent) * torch.maximum(*ends)
    return accumulated(size, steps, tiny=2 * steps)
