"""Relax convex and concave functions: the tangent on one side, the chord on the other."""

from dataclasses import dataclass
from math import exp, inf, log1p

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.sigmoidal import (
    REACH,
    Piece,
    Span,
    clamped,
    hinged,
    image,
    offset,
    replaced,
    supporting,
    widened,
)
from verifiers.graph.rounding import LIBRARY, accumulated, counted, gamma, steps_of

#: Relative distance between a jump and its position in float64, at most.
NEAR = 1e-6


class Curved:
    """A function that is convex or concave on every interval of its domain (``sign`` = 1 or -1).

    Sound: a convex f is above its tangent at any point of the interval, and f less a line is greatest at an end. Both
    offsets are computed for the rounded slope, less rounding. If the interval leaves the domain, the bounds are
    infinite; if a line's terms would overflow, the lines are the constant bounds. The gradient of both is zero.
    """

    turning: tuple[float, ...] = ()
    unit: float = 1.0
    #: The largest terms in use are finfo.max to this power; less for powers of x, whose higher derivatives grow.
    headroom: float = 0.75
    #: The roundings of float32: it computes f(x) (1 + d) with |d| <= gamma(steps), or a subnormal number near f(x).
    steps: int | float = inf

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        raise NotImplementedError

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Compute the derivative."""
        raise NotImplementedError

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        """Return a mask of the intervals inside the domain."""
        return low <= high

    def sign(self, low: Tensor) -> Tensor:
        """Return 1 where f is convex, -1 where it is concave."""
        return torch.ones_like(low)

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        """Compute the slope of the line through both ends."""
        return Span.of(self, low, high, self.unit).chord

    def tangent(self, low: Tensor, high: Tensor, alpha: Tensor | None) -> Tensor:
        """Choose the point of tangency; by default the middle, which encloses the least area."""
        return low / 2 + high / 2 if alpha is None else torch.lerp(low, high, alpha)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        inside, smooth = self.domain(low, high), self._computable(low, high)
        low, high = (torch.where(smooth, x, torch.where(inside, x, 1.0).detach()) for x in (low, high))
        least, most = image(self, low, high, *self.turning)
        return torch.where(inside, least, -inf), torch.where(inside, most, inf)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        smooth = self._computable(low, high)
        with torch.no_grad():
            least, most = self.interval(low, high)
        relaxed = self._lines(torch.where(smooth, low, 1.0), torch.where(smooth, high, 1.0), alpha)
        return replaced(relaxed, ~smooth, 0.0, least, most)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return low < high

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(steps) |f|."""
        return counted(self, self.steps, size)

    def _lines(self, low: Tensor, high: Tensor, alpha: Alpha | None) -> Lines:
        sign, chord = self.sign(low), self.chord(low, high)
        convex = sign > 0
        t = self.tangent(low, high, None if alpha is None else torch.where(convex, *alpha))
        slope, ends = self.derivative(t), ((low, self(low)), (high, self(high)))
        pairs = (slope, chord), (offset(sign, slope, (t, self(t)), *ends), offset(-sign, chord, *ends))
        lower, upper = (torch.where(convex, a, b) for a, b in pairs), (torch.where(convex, b, a) for a, b in pairs)
        return Lines(*lower, *upper)

    @torch.no_grad()
    def _computable(self, low: Tensor, high: Tensor) -> Tensor:
        inside = self.domain(low, high)
        ends = torch.where(inside, low, 1.0), torch.where(inside, high, 1.0)
        size = sum(self(x).abs() + self.derivative(x).abs() for x in ends) * (1 + low.abs().maximum(high.abs()))
        return inside & (size < torch.finfo(low.dtype).max ** self.headroom)


class Exp(Curved):
    """exp(x). The default tangent stays within 1 of the low end, so that the lower line is positive there."""

    steps = LIBRARY

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.exp(x)

    derivative = __call__

    def tangent(self, low: Tensor, high: Tensor, alpha: Tensor | None) -> Tensor:
        middle = super().tangent(low, high, alpha)
        return middle.minimum(low + 0.99) if alpha is None else middle


class Square(Curved):
    """x^2, in float32 one product."""

    turning = (0.0,)
    steps = 1

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return x * x

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 2 * x

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        return low + high


class Log(Curved):
    """log(x) for x > 0, concave."""

    headroom = 0.45
    steps = LIBRARY

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.log(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1 / x

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        return low > 0

    def sign(self, low: Tensor) -> Tensor:
        return -torch.ones_like(low)

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        return Span.of(self, low, high, low).chord


class Sqrt(Curved):
    """sqrt(x) for x >= 0, concave. Tangents avoid 0, where they would be vertical; the chord may end there."""

    headroom = 0.3
    steps = LIBRARY

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        root = torch.where(x > 0, x, 1.0).sqrt()
        return torch.where(x > 0, root, torch.where(x < 0, torch.nan, x))

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 0.5 / torch.sqrt(x)

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        return low >= 0

    def sign(self, low: Tensor) -> Tensor:
        return -torch.ones_like(low)

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        return 1 / (self(low) + self(high))

    def tangent(self, low: Tensor, high: Tensor, alpha: Tensor | None) -> Tensor:
        return super().tangent(low, high, alpha).maximum(1e-6 * high)

    @torch.no_grad()
    def _computable(self, low: Tensor, high: Tensor) -> Tensor:
        limit = torch.finfo(low.dtype).max ** self.headroom
        return self.domain(low, high) & (high > 1 / limit) & (high < limit)


class Rsqrt(Curved):
    """1 / sqrt(x) for x > 0, convex; in float32 a root and a quotient, or one function."""

    headroom = 0.3
    steps = LIBRARY + 2

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.rsqrt(x)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return -0.5 * torch.rsqrt(x) / x

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        return low > 0

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        left, right = low.sqrt(), high.sqrt()
        return -1 / (left + right) / left / right


class Reciprocal(Curved):
    """1 / x on intervals without 0: convex on the positive side, concave on the negative one."""

    headroom = 0.3
    steps = LIBRARY

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1 / x

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return -1 / (x * x)

    def domain(self, low: Tensor, high: Tensor) -> Tensor:
        return (low > 0) | (high < 0)

    def sign(self, low: Tensor) -> Tensor:
        return torch.where(low > 0, 1.0, -1.0).to(low)

    def chord(self, low: Tensor, high: Tensor) -> Tensor:
        return -1 / low / high


@dataclass(frozen=True)
class _SmoothSoftplus(Curved):
    """log(1 + exp(beta x)) / beta."""

    beta: float

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return -F.logsigmoid(-self.beta * x) / self.beta

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sigmoid(self.beta * x)

    @property
    def unit(self) -> float:  # type: ignore[override]
        return 1 / self.beta


@dataclass(frozen=True)
class Softplus:
    """log(1 + exp(beta x)) / beta as torch computes it for beta > 0: x itself where beta x > threshold.

    Sound: at the threshold torch's function falls from the smooth one to x, by ``jump``, and from there on the smooth
    one is at most ``jump`` above x. On an interval across the threshold, the smooth one's lower line holds if lowered
    by ``jump``, and its upper line holds unchanged. Beyond the threshold the line is x. The position of the jump
    depends on the precision of the computation, so "across" extends ``NEAR`` of the threshold to both sides.
    """

    beta: float = 1.0
    threshold: float = 20.0

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be positive, got {self.beta}")

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.softplus(x, self.beta, self.threshold)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        least, most = _SmoothSoftplus(self.beta).interval(low, high)
        across, beyond = self._across(low, high)
        first, last = self._edges()
        bottom, _ = widened(low.clamp_min(first), high)
        _, peak = _SmoothSoftplus(self.beta).interval(low, clamped(last, low, high))
        least, most = torch.where(across, least.minimum(bottom), least), torch.where(across, peak.maximum(high), most)
        return torch.where(beyond, low, least), torch.where(beyond, high, most)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        smooth = _SmoothSoftplus(self.beta).lines(low, high, alpha)
        across, beyond = self._across(low, high)
        fallen = smooth._replace(lower_offset=smooth.lower_offset - self._jump() * across.to(smooth.lower_offset))
        return replaced(fallen, beyond, 1.0, 0.0, 0.0)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (low < high) & ~self._across(low, high)[1]

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(24) |f|: beta, its product, exp and log1p of 4 ulp each and a quotient; and gamma(2) / beta left of 0.

        There exp(beta x) is off by 2 |beta x| roundings, and |z| log1p(exp(z)) < 1. Near the threshold float32 may take
        the other branch, which is ``jump`` away. Beyond it the value is x.
        """
        across, beyond = self._across(low, high)
        error = accumulated(size, 2 * LIBRARY + 8, tiny=4 + 4 / self.beta) + float(gamma(2)) / self.beta * (low < 0)
        error = error + torch.where(across, self._jump(), 0.0)
        overflows = ~beyond & (self.beta * high > 88) & (self.threshold > 88)
        return torch.where(beyond, 0.0, torch.where(overflows, inf, error))

    def _jump(self) -> float:
        """Bound the fall at the threshold."""
        return log1p(exp(-self._edges()[0] * self.beta)) / self.beta * (1 + 1e-12)

    def _across(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self._edges()
        beyond = low > last
        return (high > first) & ~beyond, beyond

    def _edges(self) -> tuple[float, float]:
        """Return two edges: below the first the function is smooth, above the last it is x, in every precision."""
        edge = self.threshold / self.beta
        return edge - NEAR * abs(edge), edge + NEAR * abs(edge)


@dataclass(frozen=True)
class Elu(Curved):
    """scale (x if x > 0 else alpha (exp(input_scale x) - 1)): ELU, SELU and CELU, for positive scales, alpha >= 0.

    Sound: f is convex if the left slope at 0, alpha input_scale, is at most 1. Otherwise f is convex up to 0, has a
    downward kink there and is a straight line after it: :func:`supporting` gives the lower line, and :func:`hinged`
    the upper one for -f, which is concave up to 0 and straight after it.
    """

    alpha: float = 1.0
    scale: float = 1.0
    input_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.scale <= 0 or self.input_scale <= 0:
            raise ValueError(f"{self} is not increasing")

    @property
    def unit(self) -> float:  # type: ignore[override]
        return 1 / self.input_scale

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.ops.aten.elu(x, self.alpha, self.scale, self.input_scale)

    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        left = self.scale * self.alpha * self.input_scale * torch.exp(self.input_scale * x.clamp_max(0.0))
        return torch.where(x > 0, self.scale, left)

    def _lines(self, low: Tensor, high: Tensor, alpha: Alpha | None) -> Lines:
        if self.alpha * self.input_scale <= 1:
            return super()._lines(low, high, alpha)
        lower_alpha, upper_alpha = alpha or (None, None)
        span, kink = Span.of(self, low, high, self.unit), clamped(0.0, low, high)
        convex = Piece(low, kink, low.maximum(kink - REACH * self.unit), kink)
        return Lines(
            *supporting(self, 1.0, span, convex, lower_alpha),
            *hinged(self, -1.0, (low, high), 0.0, upper_alpha),
        )

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        return (low < high) & (low < 0)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> Tensor:
        """gamma(7) |f|, and gamma(12) alpha scale left of 0.

        The three constants are rounded, and three products, one of which is exp's argument; neither amplifies relative
        errors. exp(z) - 1 is off by 9 roundings, as exp(z) <= 1, if it is computed so, and by less as expm1(z).
        """
        left = (low < 0).to(low.dtype)
        steps = steps_of(self.scale) + 7 * left
        negative = float(gamma(LIBRARY + 4)) * self.alpha * self.scale
        return accumulated(size, steps, tiny=(1 + self.alpha * self.scale) * 4) + negative * left
