"""Relax GELU, SiLU and Mish: they fall from 0, turn in a convex middle, and approach x from above."""

from dataclasses import dataclass
from math import pi, sqrt
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.sigmoidal import REACH, Piece, Span, clamped, image, supporting
from verifiers.graph.rounding import LIBRARY, TINY, accumulated, magnitude


class _Swish:
    """A curve that is convex between its two inflection points ``bends`` and concave outside, least at ``bottom``;
    its derivative is below 0 left of the bends and above 1 right of them.

    Sound, by :func:`supporting`: the piece of the lower line is the convex middle, between two concave parts. The
    piece of the upper line is the left concave part if the chord is flatter than 1/2, else the right one. The line's
    slope, a derivative on the piece or the chord's, is then below 1/2 too (above, for the right one). Less the line,
    the concave part on the other side therefore rises (falls) throughout. It is greatest at the interval's end or at
    the convex part, whose greatest value is at an end or at the piece.
    The slack is proportional to |x|: in the left tail 1 + erf is nothing but rounding, so values lose that much.
    """

    bends: ClassVar[tuple[float, float]]
    bottom: ClassVar[float]

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        raise NotImplementedError

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the derivative."""
        raise NotImplementedError

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return image(self, low, high, self.bottom, noise=low.abs().maximum(high.abs()).clamp_max(1.0))

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        span, (left, right) = Span.of(self, low, high), (clamped(bend, low, high) for bend in self.bends)
        lower_alpha, upper_alpha = alpha or (None, None)
        flat = span.chord < 0.5
        concave = Piece(
            torch.where(flat, low, right),
            torch.where(flat, left, high),
            torch.where(flat, low.maximum(left - REACH), right),
            torch.where(flat, left, high.minimum(right + REACH)),
        )
        noise = low.abs().maximum(high.abs())
        return Lines(
            *supporting(self, 1.0, span, Piece(left, right, left, right), lower_alpha, noise),
            *supporting(self, -1.0, span, concave, upper_alpha, noise),
        )

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return low < high

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """Bound the error of float32, as :class:`verifiers.graph.relaxations.lines.Activation` does."""
        raise NotImplementedError


@dataclass(frozen=True)
class Gelu(_Swish):
    """x Phi(x), where Phi is the normal distribution function, or torch's tanh approximation of it."""

    approximate: Literal["none", "tanh"] = "none"

    @property
    def bends(self) -> tuple[float, float]:  # type: ignore[override]
        bend = sqrt(2) if self.approximate == "none" else 1.4185040087908284
        return -bend, bend

    @property
    def bottom(self) -> float:  # type: ignore[override]
        return -0.7517915246935645 if self.approximate == "none" else -0.7524614220710163

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.gelu(x, approximate=self.approximate)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        x = x.clamp(-REACH, REACH)
        if self.approximate == "none":
            return torch.special.erfc(x / -sqrt(2)) / 2 + x * torch.exp(-x * x / 2) / sqrt(2 * pi)
        inner, slope = 2 * sqrt(2 / pi) * (x + 0.044715 * x**3), 2 * sqrt(2 / pi) * (1 + 3 * 0.044715 * x**2)
        return torch.sigmoid(inner) * (1 + x * torch.sigmoid(-inner) * slope)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(16) |x|, for x / 2 (1 + erf(x / sqrt 2)) and for tanh in place of erf.

        erf is off by 24 units of roundoff at most: torch's vectorised kernel is the polynomial 7.1.26 of Abramowitz and
        Stegun, of absolute error 1.5e-7, evaluated in float32. tanh is off by 8, and by 4 for its argument, which is
        relatively accurate. The sum 1 + erf cancels in the left tail, so nothing better than a multiple of |x| holds.
        """
        return accumulated(size, 4) + accumulated(magnitude((low, high)), 16, tiny=LIBRARY)


class Silu(_Swish):
    """x / (1 + exp(-x))."""

    bends = (-2.3993572805154677, 2.3993572805154677)
    bottom = -1.278464542761074

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.silu(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(13) |f|: exp of 4 ulp, a sum, a quotient and a product; 2^-119 where exp(-x) overflows, below -88."""
        return accumulated(size, LIBRARY + 5, tiny=2.0**-119 / TINY)


class Mish(_Swish):
    """x tanh(log(1 + exp(x)))."""

    bends = (-2.2563763963607931, 1.4905711794854284)
    bottom = -1.1924312145154952

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.mish(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        log = F.softplus(x)
        fade = 4 * torch.sigmoid(2 * log) * torch.sigmoid(-2 * log)
        return torch.tanh(log) + x * fade * torch.sigmoid(x)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(26) |f|: exp, log1p and tanh of 4 ulp each, none of which amplifies relative errors, and a product."""
        return accumulated(size, 3 * LIBRARY + 2, tiny=16 * (1 + magnitude((low, high))))
