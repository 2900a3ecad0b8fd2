"""Bound the slope of an activation on an interval, and its rate of change.

``slopes`` encloses every difference quotient (s(y) - s(x)) / (y - x) for x != y in [low, high], and at a single point
every one-sided derivative. A diagonal matrix of such slopes can replace a layer. ``curvature`` bounds |s''|. Both are
dimensionless and computed in double precision. Ends may be infinite; a nan end means an unbounded interval, and ends in
the wrong order mean the interval between them.

A derivative is extreme at an end of the interval or where the next derivative vanishes. Those points are constants
here, accurate to 1e-15, which changes the extreme by its square. Computed values move outward by their rounding.
"""

from collections.abc import Callable
from functools import reduce
from math import inf, nextafter, pi, sqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.core.errors import Unsupported
from verifiers.graph.relaxations.convex import Elu, Exp, Softplus, Square
from verifiers.graph.relaxations.gelu import Gelu, Mish, Silu
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.piecewise import Abs, Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.sigmoidal import Sigmoid, Tanh, clamped

#: Computed derivatives move outward by this times the size of their terms.
SLACK = 32 * torch.finfo(torch.float64).eps
#: Beyond this, the derivatives of the smooth activations without parameters equal their limits in double precision.
FAR = 800.0
#: Torch's softplus counts as continuous if it jumps by at most this share of its value: single precision's unit.
JUMP = 2.0**-24

Function = Callable[[Tensor], Tensor]
Pair = tuple[Tensor, Tensor]


def slopes(
    activation: Activation, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Compute the smallest interval that contains the slopes of an activation between any two points of [low, high],
    rounded outwards (for softplus, of its continuous form; see :func:`jump`).

    Raises:
        Unsupported: the activation has no known slope, or an unbounded one on one of the intervals.
    """
    if type(activation) not in _SLOPES:
        raise Unsupported(f"lipschitz: no bound of the slope of {_name(activation)} is known; use bound propagation")
    return _SLOPES[type(activation)](activation, *_ends(low, high))


def curvature(
    activation: Activation, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Bound |s''| on [low, high] from above, tight up to rounding: a Lipschitz constant of the slope.

    Raises:
        Unsupported: the activation has kinks, or no bound is known.
    """
    if isinstance(activation, _KINKED) or (
        isinstance(activation, Elu) and activation.alpha * activation.input_scale != 1
    ):
        raise Unsupported(f"lipschitz: {_name(activation)} has kinks, so it has no curvature")
    if type(activation) not in _CURVATURES:
        raise Unsupported(f"lipschitz: no bound of the curvature of {_name(activation)} is known")
    return _CURVATURES[type(activation)](activation, *_ends(low, high))


def jump(activation: Activation) -> float:
    """Compute the largest distance of an activation from the continuous function described here, rounded up. It is 0
    except for torch's softplus, which falls to x by log(1 + exp(-threshold)) / beta at its threshold (2.1e-9 by
    default)."""
    if not isinstance(activation, Softplus):
        return 0.0
    return float(np.logaddexp(0.0, -activation.threshold)) / activation.beta * (1 + SLACK)


def _name(activation: object) -> str:
    return type(activation).__name__.lower()


def _ends(low: Tensor, high: Tensor) -> Pair:
    unknown = low.isnan() | high.isnan()
    first, last = low.double().masked_fill(unknown, -inf), high.double().masked_fill(unknown, inf)
    return torch.minimum(first, last), torch.maximum(first, last)


def _extremes(function: Function, low: Tensor, high: Tensor, *critical: float) -> Pair:
    """Compute the extremes of a function that is monotone between critical points."""
    values = [function(low), function(high), *(function(clamped(point, low, high)) for point in critical)]
    return reduce(torch.minimum, values), reduce(torch.maximum, values)


def _pieces(low: Tensor, high: Tensor, *pieces: tuple[float, float, float | Tensor, float | Tensor]) -> Pair:
    """Compute the hull of the slopes of the pieces (from, to, least slope, greatest slope) that share more than a
    point with an interval; an interval that is a point uses all pieces that contain it."""
    lower, upper = torch.full_like(low, inf), torch.full_like(low, -inf)
    for left, right, least, greatest in pieces:
        met = ((low < right) & (high > left)) | ((low == high) & (low >= left) & (low <= right))
        first, last = (torch.as_tensor(x, dtype=low.dtype, device=low.device) for x in (least, greatest))
        lower, upper = torch.where(met, lower.minimum(first), lower), torch.where(met, upper.maximum(last), upper)
    return lower, upper


def _leaky_slopes(activation: LeakyRelu, low: Tensor, high: Tensor) -> Pair:
    return _pieces(low, high, (-inf, 0.0, activation.slope, activation.slope), (0.0, inf, 1.0, 1.0))


def _clamp_slopes(activation: Clamp, low: Tensor, high: Tensor) -> Pair:
    minimum, maximum = activation.ends
    pieces = ((-inf, minimum, 0.0, 0.0), (minimum, maximum, 1.0, 1.0), (maximum, inf, 0.0, 0.0))
    return _pieces(low, high, *(piece for piece in pieces if piece[0] < piece[1]))


def _hard_sigmoid_slopes(activation: HardSigmoid, low: Tensor, high: Tensor) -> Pair:
    sixth = (nextafter(1 / 6, 0), 1 / 6 * (1 + 2**-24))  # torch differentiates with the sixth of single precision
    return _pieces(low, high, (-inf, -3.0, 0.0, 0.0), (-3.0, 3.0, *sixth), (3.0, inf, 0.0, 0.0))


def _hard_swish_slopes(activation: HardSwish, low: Tensor, high: Tensor) -> Pair:
    least, greatest = activation.derivative(low) - SLACK, activation.derivative(high) + SLACK
    curved = (-3.0, 3.0, least.clamp_min(-0.5), greatest.clamp_max(1.5))
    return _pieces(low, high, (-inf, -3.0, 0.0, 0.0), curved, (3.0, inf, 1.0, 1.0))


def _elu_slopes(activation: Elu, low: Tensor, high: Tensor) -> Pair:
    steepest = activation.scale * activation.alpha * activation.input_scale
    least, greatest = (steepest * torch.exp(activation.input_scale * x.clamp_max(0.0)) for x in (low, high))
    curved = (-inf, 0.0, (least - SLACK * steepest).clamp_min(0.0), greatest + SLACK * steepest)
    return _pieces(low, high, curved, (0.0, inf, activation.scale, activation.scale))


def _softplus_slopes(activation: Softplus, low: Tensor, high: Tensor) -> Pair:
    low, high = _continuous(activation, low, high)
    least, greatest = torch.sigmoid(low) - SLACK, torch.sigmoid(high) + SLACK
    lower = torch.where(low > activation.threshold, 1.0, least.clamp_min(0.0))
    return lower, torch.where(high > activation.threshold, 1.0, greatest.clamp_max(1.0))


def _continuous(activation: Softplus, low: Tensor, high: Tensor) -> Pair:
    """Return beta [low, high]; reject intervals on which torch's softplus jumps by more than rounding."""
    low, high = low * activation.beta, high * activation.beta
    across = (low <= activation.threshold) & (high > activation.threshold)
    fall = jump(activation)
    if fall > JUMP * activation.threshold / activation.beta and bool(across.any()):
        raise Unsupported(f"lipschitz: softplus falls by {fall:.1e} at its threshold {activation.threshold}")
    return low, high


def _smooth_slopes(
    derivative: Callable[[Any, Tensor], Tensor],
    critical: Callable[[Any], tuple[float, ...]],
    within: tuple[float, float],
) -> Callable[[Any, Tensor, Tensor], Pair]:
    """Bound the slopes of an activation whose derivative has its extremes at critical points and a known range."""

    def bounds(activation: Any, low: Tensor, high: Tensor) -> Pair:
        least, greatest = _extremes(
            lambda x: derivative(activation, x.clamp(-FAR, FAR)), low, high, *critical(activation)
        )
        return (least - SLACK).clamp_min(within[0]), (greatest + SLACK).clamp_max(within[1])

    return bounds


def _finite(activation: object, lower: Tensor, upper: Tensor) -> Pair:
    if not bool((torch.isfinite(lower) & torch.isfinite(upper)).all()):
        raise Unsupported(f"lipschitz: {_name(activation)} has no bounded slope where its input is unbounded")
    return lower, upper


def _square_slopes(activation: Square, low: Tensor, high: Tensor) -> Pair:
    return _finite(activation, 2 * low, 2 * high)


def _exp_slopes(activation: Exp, low: Tensor, high: Tensor) -> Pair:
    tiny = torch.finfo(low.dtype).tiny
    return _finite(activation, (low.exp() * (1 - SLACK) - tiny).clamp_min(0.0), high.exp() * (1 + SLACK) + tiny)


def _smooth_curvature(
    second: Callable[[Any, Tensor], Tensor], *critical: float
) -> Callable[[Any, Tensor, Tensor], Tensor]:
    """Bound the curvature of an activation whose second derivative has its extremes at critical points."""

    def bound(activation: Any, low: Tensor, high: Tensor) -> Tensor:
        least, greatest = _extremes(lambda x: second(activation, x.clamp(-FAR, FAR)), low, high, *critical)
        return torch.maximum(-least, greatest) + SLACK

    return bound


def _tanh_second(activation: Tanh, x: Tensor) -> Tensor:
    return -2 * torch.tanh(x) * activation.derivative(x)


def _sigmoid_second(activation: object, x: Tensor) -> Tensor:
    rising, falling = torch.sigmoid(x), torch.sigmoid(-x)
    return rising * falling * (falling - rising)


def _silu_second(activation: object, x: Tensor) -> Tensor:
    rising, falling = torch.sigmoid(x), torch.sigmoid(-x)
    return rising * falling * (2 + x * (falling - rising))


def _gelu_second(activation: object, x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / sqrt(2 * pi) * (2 - x * x)


def _gelu_tanh_second(activation: object, x: Tensor) -> Tensor:
    """Compute the second derivative of x S(g) for the logistic function S and g = sqrt(8 / pi) (x + 0.044715 x^3)."""
    rate, cubic = 2 * sqrt(2 / pi), 0.044715
    inner, first, second = rate * (x + cubic * x**3), rate * (1 + 3 * cubic * x * x), rate * 6 * cubic * x
    rising, falling = torch.sigmoid(inner), torch.sigmoid(-inner)
    return rising * falling * (2 * first + x * second + x * first * first * (falling - rising))


def _gelu_curvature(activation: Gelu, low: Tensor, high: Tensor) -> Tensor:
    if activation.approximate == "none":
        return _smooth_curvature(_gelu_second, -2.0, 0.0, 2.0)(activation, low, high)
    return _smooth_curvature(_gelu_tanh_second, -2.0134807246242579, 0.0, 2.0134807246242579)(activation, low, high)


def _softplus_curvature(activation: Softplus, low: Tensor, high: Tensor) -> Tensor:
    low, high = _continuous(activation, low, high)
    _, greatest = _extremes(lambda x: torch.sigmoid(x) * torch.sigmoid(-x), low, high, 0.0)
    return torch.where(low > activation.threshold, 0.0, activation.beta * (greatest + SLACK))


def _elu_curvature(activation: Elu, low: Tensor, high: Tensor) -> Tensor:
    """Bound the curvature of the ELU without a kink, alpha input_scale = 1."""
    steepest = activation.scale * activation.input_scale
    curved = steepest * (torch.exp(activation.input_scale * high.clamp_max(0.0)) + SLACK)
    return torch.where((low >= 0) & (high > 0), 0.0, curved)


def _square_curvature(activation: Square, low: Tensor, high: Tensor) -> Tensor:
    return torch.full_like(low, 2.0)


def _exp_curvature(activation: Exp, low: Tensor, high: Tensor) -> Tensor:
    return _exp_slopes(activation, low, high)[1]


def _bends(activation: Any) -> tuple[float, ...]:
    return tuple(activation.bends)


_SLOPES: dict[type, Callable[[Any, Tensor, Tensor], Pair]] = {
    Relu: lambda activation, low, high: _leaky_slopes(LeakyRelu(0.0), low, high),
    LeakyRelu: _leaky_slopes,
    Abs: _leaky_slopes,
    Clamp: _clamp_slopes,
    HardSigmoid: _hard_sigmoid_slopes,
    HardSwish: _hard_swish_slopes,
    Elu: _elu_slopes,
    Softplus: _softplus_slopes,
    Square: _square_slopes,
    Exp: _exp_slopes,
    Tanh: _smooth_slopes(Tanh.derivative, lambda activation: (0.0,), (0.0, 1.0)),
    Sigmoid: _smooth_slopes(Sigmoid.derivative, lambda activation: (0.0,), (0.0, 0.25)),
    Gelu: _smooth_slopes(Gelu.derivative, _bends, (-inf, inf)),
    Silu: _smooth_slopes(Silu.derivative, _bends, (-inf, inf)),
    Mish: _smooth_slopes(Mish.derivative, _bends, (-inf, inf)),
}
_KINKED = (Relu, LeakyRelu, Clamp, HardSigmoid, HardSwish)
_CURVATURES: dict[type, Callable[[Any, Tensor, Tensor], Tensor]] = {
    Tanh: _smooth_curvature(_tanh_second, -0.65847894846240836, 0.65847894846240836),
    Sigmoid: _smooth_curvature(_sigmoid_second, -1.3169578969248167, 1.3169578969248167),
    Silu: _smooth_curvature(_silu_second, -3.4358409935351107, 0.0, 3.4358409935351107),
    Gelu: _gelu_curvature,
    Softplus: _softplus_curvature,
    Elu: _elu_curvature,
    Square: _square_curvature,
    Exp: _exp_curvature,
}
