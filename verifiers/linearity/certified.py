"""Bound the distance of a margin or the cross-entropy from its linearisation on a ball.

For a function g with gradient J at x, over the ball B of radius eps (within the image box):

    gamma_minus = sup_B [ g(x) + <J, d> - g(x + d) ]        gamma_plus = sup_B [ g(x + d) - g(x) - <J, d> ]

Both are at least 0 and grow with eps. Certified bounds come from linear relaxation, from an interval Jacobian and, for
smooth activations, from curvature. Attacks give lower bounds: estimates, which never feed a radius.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation import Bounds, deviation
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import DUAL, Balls
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.slopes import curvature
from verifiers.lipschitz.jacobians import INFLATION, Linearised, SlopeRanges, interval_jacobian
from verifiers.lipschitz.layers import Network
from verifiers.lipschitz.operator_norms import dense_norm

#: phi(1), the largest slope of the standard normal density.
PHI_1 = math.exp(-0.5) / math.sqrt(2 * math.pi)


class Sides(NamedTuple):
    """Upper bounds of gamma_minus and gamma_plus, one per row."""

    minus: Float[Tensor, "batch rows"]
    plus: Float[Tensor, "batch rows"]

    @property
    def both(self) -> Float[Tensor, "batch rows"]:
        """The larger of the two."""
        return torch.maximum(*self)

    def or_better(self, other: Tensor) -> "Sides":
        """Tighten both sides by another bound of both; nan is no bound."""
        return Sides(torch.fmin(self.minus, other), torch.fmin(self.plus, other))


def by_relaxation(bounds: Bounds, linear: Linearised) -> Sides:
    """Bound gamma by linear relaxation of the rows less their linearisations; ``bounds`` must be propagated."""
    with torch.no_grad():
        low = bounds.by_rows(linear.rows, linear.gradients).bound
        negated = bounds.by_rows(-linear.rows, -linear.gradients).bound
    return Sides((linear.offset - low).clamp_min(0.0), (-negated - linear.offset).clamp_min(0.0))


def by_interval_jacobian(
    ranges: SlopeRanges, linear: Linearised, eps: float, norm: Norm
) -> Float[Tensor, "batch rows"]:
    """Bound gamma on both sides by eps times the largest dual norm of a gradient on the ball less the one at x."""
    box = interval_jacobian(ranges, linear.rows).image
    at_x = linear.gradients.flatten(2)
    furthest = torch.maximum((box.high - at_x).abs(), (box.low - at_x).abs())
    return eps * torch.linalg.vector_norm(furthest, DUAL[norm], dim=2) * INFLATION


def by_curvature(
    ranges: SlopeRanges, boxes: Sequence[Interval], rows: Float[Tensor, "batch rows classes"], eps: float
) -> Float[Tensor, "batch rows"]:
    """Bound gamma on both sides in l2 (or l1) by eps^2 H / 2, with H >= any eigenvalue of a row's Hessian on the ball.

    The Hessian is the sum over layers of N_k^T diag(s''(z_k) dg/dh_k) N_k with N_k = dz_k/dx. The norm of a term is at
    most max|s'' dg/dh_k| ||N_k||^2; if N_k is one fixed matrix, the norm of the whole product is used.

    Raises:
        Unsupported: an activation has a kink.
    """
    box = interval_jacobian(ranges, rows)
    total = torch.zeros(rows.shape[:2], dtype=rows.dtype, device=rows.device)
    for k, layer in enumerate(ranges.layers.hidden):
        assert layer.activation is not None
        bend = curvature(layer.activation, *boxes[k]).flatten(1)
        if (sensitivity := box.activations[k]) is None:
            continue
        weight = torch.maximum(sensitivity.low.abs(), sensitivity.high.abs()) * bend[:, None, :]
        if list(layer.weights) == [0]:
            total = total + dense_norm(weight.sqrt()[..., None] * layer.weights[0]) ** 2
        else:
            total = total + weight.amax(2) * ranges.layer_norms[k][:, None] ** 2
    return eps**2 / 2 * total * INFLATION


@dataclass(frozen=True)
class Linearity:
    """Proved bounds of rows on balls of radius eps; every tensor is ``(batch, rows)``.

    Attributes:
        linear: the rows, linearised at the images.
        gamma: upper bounds by the best technique.
        techniques: upper bounds of the larger side by name; a technique that does not apply is absent.
        low, high: CROWN bounds of the rows' values.
        rounding: the amount by which rounding lowered ``low``; 0 in real arithmetic.
    """

    linear: Linearised
    gamma: Sides
    techniques: dict[str, Tensor]
    low: Tensor
    high: Tensor
    rounding: Tensor

    def lowest(self, eps: float, norm: Norm) -> Float[Tensor, "batch rows"]:
        """Bound the rows from below by their linearisations."""
        return self.linear.values - eps * self.linear.steepness(norm) - self.gamma.minus


def measure(network: Network, x: Float[Tensor, "batch *shape"], rows: Tensor, eps: float, norm: Norm) -> Linearity:
    """Bound rows, and their distance from their linearisations, on the balls; x is in float64.

    The linearisations are the exact network's. In float32 arithmetic the distances and values are the deployed one's:
    linear relaxation contains the rounding, and techniques of the exact network add it.
    """
    native, linear = network.native, Linearised.at(network.native.model, x, rows)
    bounds = native.bounds(Balls.around(x, eps, norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
        low, negated = bounds.by_rows(rows), bounds.by_rows(-rows)
        gamma = by_relaxation(bounds, linear)
        techniques = {"relaxation": gamma.both}
        if network.layers is not None:
            with suppress(Unsupported):  # a slope may be unbounded on a box, and a kink has no curvature
                boxes = network.layers.boxes(bounds)
                ranges = SlopeRanges.over(network.layers, boxes)
                rounding = deviation(bounds, rows)
                techniques["interval"] = by_interval_jacobian(ranges, linear, eps, norm) + rounding
                if norm is not Norm.LINF:
                    techniques["curvature"] = by_curvature(ranges, boxes, rows, eps) + rounding
    for other in techniques.values():
        gamma = gamma.or_better(other)
    return Linearity(linear, gamma, techniques, low.bound, -negated.bound, low.rounding)


def smoothed_gamma(eps: float, sigma: float) -> float:
    """Bound gamma of a probability under Gaussian noise in l2: phi(1) eps^2 / sigma^2 a side; twice that for margins.

    For h(x) = E g(x + sigma z) with g in [0, 1], |h''| <= 2 phi(1) / sigma^2 along any direction: the extreme g is the
    indicator of |z| > 1.
    """
    if not (eps >= 0 and sigma > 0):
        raise ValueError(f"need eps >= 0 and sigma > 0, got {eps} and {sigma}")
    return PHI_1 * eps**2 / sigma**2


class LossLinearity(NamedTuple):
    """The cross-entropy of the rows' common class at the images, and bounds on the balls, one value per sample.

    Attributes:
        value: its value at the image.
        gradient: its gradient at the image, ``(batch, pixels)``.
        gamma_minus, gamma_plus: upper bounds of its distance below and above its linearisation, from the gradients at
            the image and the margins' gamma.
        fall, rise: the same bounds from its values alone.
        high: an upper bound of its value.
    """

    value: Float[Tensor, " batch"]
    gradient: Float[Tensor, "batch pixels"]
    gamma_minus: Float[Tensor, " batch"]
    gamma_plus: Float[Tensor, " batch"]
    fall: Float[Tensor, " batch"]
    rise: Float[Tensor, " batch"]
    high: Float[Tensor, " batch"]


def of_cross_entropy(found: Linearity, eps: float, norm: Norm) -> LossLinearity:
    """Bound CE = log(1 + sum_j exp(-m_j)), with gradient G = -sum_j p_j J_j, from the margins m_j to all other classes.

    With u_j = -m_j (and u_y = 0), CE is convex in u with gradient p, so it falls below its linearisation by at most
    sum_j p_j gamma_plus_j (Jensen). It rises above it by log sum_k p_k exp(<grad u_k - G, d> + R_k) with
    R_k <= gamma_minus_k. That is at most log sum_k p_k exp(eps ||grad u_k - G||_* + gamma_minus_k), and at most
    sum_j p_j gamma_minus_j + r^2 / 8, where r is the range of all changes of the u_k (Hoeffding's lemma).
    """
    margins = found.linear.values
    shares = torch.softmax(torch.cat([torch.zeros_like(margins[:, :1]), -margins], 1), 1)
    others, slopes = shares[:, 1:], -found.linear.gradients.flatten(2)
    gradient = torch.einsum("br,brp->bp", others, slopes)
    apart = torch.cat([torch.zeros_like(slopes[:, :1]), slopes], 1) - gradient[:, None]
    gamma = torch.cat([torch.zeros_like(margins[:, :1]), found.gamma.minus], 1)
    above = torch.logsumexp(shares.log() + eps * torch.linalg.vector_norm(apart, DUAL[norm], dim=2) + gamma, 1)
    change = (margins - found.low).amax(1).clamp_min(0.0) + (found.high - margins).amax(1).clamp_min(0.0)
    value, low, high = (cross_entropy(m) for m in (margins, found.high, found.low))
    reach = eps * torch.linalg.vector_norm(gradient, DUAL[norm], dim=1)
    return LossLinearity(
        value=value,
        gradient=gradient,
        gamma_minus=(others * found.gamma.plus).sum(1),
        gamma_plus=torch.fmin((others * found.gamma.minus).sum(1) + change**2 / 8, above.clamp_min(0.0)),
        fall=value + reach - low,
        rise=high - value + reach,
        high=high,
    )


def cross_entropy(margins: Float[Tensor, "batch rows"]) -> Float[Tensor, " batch"]:
    """Compute log(1 + sum_j exp(-m_j)); lower bounds of the margins give an upper bound, and vice versa."""
    return torch.logsumexp(torch.cat([torch.zeros_like(margins[:, :1]), -margins], 1), 1)
