"""Compute a network's Jacobian at an image, and bound it for activation slopes within given ranges.

The slopes D_k of layer k are entrywise in [low_k, high_k]; M_k is the middle and R_k half the width. Ranges over a
ball's boxes give local bounds, ranges over all numbers global ones. All tensors are float64, with samples first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import DUAL
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.slopes import slopes
from verifiers.lipschitz.layers import Layers
from verifiers.lipschitz.operator_norms import dense_norm

#: Covers the rounding of sums in float64.
INFLATION = 1 + 1e-9


@dataclass(frozen=True)
class SlopeRanges:
    """The ranges of the slopes of each hidden layer, ``(batch, units)``."""

    layers: Layers
    low: Sequence[Float[Tensor, "batch _"]]
    high: Sequence[Float[Tensor, "batch _"]]

    @classmethod
    def over(cls, layers: Layers, boxes: Sequence[Interval]) -> "SlopeRanges":
        """Bound the slopes over boxes of z, ``(batch, *shape)``, one per hidden layer."""
        pairs = []
        for layer, box in zip(layers.hidden, boxes, strict=True):
            assert layer.activation is not None
            pairs.append(slopes(layer.activation, *box))
        return cls(layers, [low.flatten(1) for low, _ in pairs], [high.flatten(1) for _, high in pairs])

    @classmethod
    def anywhere(cls, layers: Layers) -> "SlopeRanges":
        """Bound the slopes over all numbers, as a batch of one."""
        ends = [layers.graph.like.new_full((1, *layer.shape), float("inf")) for layer in layers.hidden]
        return cls.over(layers, [Interval(-end, end) for end in ends])

    @cached_property
    def middle(self) -> list[Tensor]:
        return [(low + high) / 2 for low, high in zip(self.low, self.high, strict=True)]

    @cached_property
    def spread(self) -> list[Tensor]:
        """The root of half the width, rounded up."""
        return [((high - low) / 2 * INFLATION).sqrt() for low, high in zip(self.low, self.high, strict=True)]

    @cached_property
    def free(self) -> list[Float[Tensor, " batch"]]:
        """Bounds n_k >= || R_k^(1/2) dz_k/dx ||_2."""
        return self._norms(self.spread)

    @cached_property
    def layer_norms(self) -> list[Float[Tensor, " batch"]]:
        """Bounds of || dz_k/dx ||_2 of the hidden layers."""
        return self._norms([torch.ones_like(spread) for spread in self.spread])

    def _norms(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """Bound || diag(scale_k) dz_k/dx || by the Jacobian at middle slopes plus a term for each layer's spread."""
        found: list[Tensor] = []
        free = found if scales is self.spread else self.free
        for k, scale in enumerate(scales):
            mean, *through = self._paths[k]
            total = scale.new_zeros(1) if mean is None else _scaled_norm(scale, mean, None)
            for i, path in enumerate(through):
                if path is not None:
                    total = total + _scaled_norm(scale, path, self.spread[i]) * free[i]
            found.append(total * INFLATION)
        return found

    @cached_property
    def _paths(self) -> list[list[Tensor | None]]:
        """For each hidden layer, the Jacobians of z_k by the image and by each earlier activation, at middle slopes."""
        found: list[list[Tensor | None]] = []
        for k, layer in enumerate(self.layers.hidden):
            sources: list[Tensor | None] = []
            for source in range(k + 1):
                parts = [layer.weights[source][None]] if source in layer.weights else []
                for j in range(source, k):
                    path = found[j][source]
                    if j + 1 in layer.weights and path is not None:
                        parts.append((layer.weights[j + 1] * self.middle[j][:, None, :]) @ path)
                sources.append(sum(parts[1:], parts[0]) if parts else None)
            found.append(sources)
        return found


def _scaled_norm(left: Tensor, matrix: Tensor, right: Tensor | None) -> Float[Tensor, " batch"]:
    """Bound || diag(left) matrix diag(right) ||_2 from above; rows and columns of zeros are left out."""
    scaled = left[:, :, None] * matrix
    if right is not None:
        scaled = scaled * right[:, None, :]
    for axis in (1, 2):
        used = (scaled != 0).any(3 - axis)
        width = int(used.sum(1).max())
        if width < scaled.shape[axis]:
            order = used.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
            index = order[:, :, None] if axis == 1 else order[:, None, :]
            shape = (-1, width, scaled.shape[2]) if axis == 1 else (-1, scaled.shape[1], width)
            scaled = scaled.expand(len(order), -1, -1).gather(axis, index.expand(shape[0], shape[1], shape[2]))
    return dense_norm(scaled)


def liplt(ranges: SlopeRanges, rows: Float[Tensor, "batch rows classes"]) -> Float[Tensor, "batch rows"]:
    """Bound || row @ Jacobian ||_2 from above for all slopes within their ranges.

    The bound is the norm at middle slopes plus a term for the spread R_k of each layer, as
    D_k = M_k + R_k^(1/2) S R_k^(1/2) with |S| <= 1. It is exact if no slope is free. Over all numbers it is LipLT,
    which holds for any range of slopes. Source: Fazlyab et al., arXiv 2310.00116; here with a range per unit, and for
    layers that read several earlier ones.
    """
    total: Tensor | None = None
    for k, at_k in enumerate(_backward(ranges, rows)):
        if at_k is None:
            continue
        if k == 0:
            part = torch.linalg.vector_norm(at_k, dim=2)
        else:
            spread = ranges.spread[k - 1][:, None, :]
            part = torch.linalg.vector_norm(at_k * spread, dim=2) * ranges.free[k - 1][:, None]
        total = part if total is None else total + part
    assert total is not None
    return total * INFLATION


def _backward(ranges: SlopeRanges, rows: Tensor) -> list[Tensor | None]:
    """Compute the coefficients of the image and of every activation at middle slopes, ``(batch, rows, units)``."""
    layers = ranges.layers
    found: list[Tensor | None] = [None] * len(layers.layers)

    def spread(at_z: Tensor, weights: dict[int, Tensor]) -> None:
        for source, weight in weights.items():
            gained, before = at_z @ weight, found[source]
            found[source] = gained if before is None else before + gained

    spread(rows, layers.output.weights)
    for k in range(len(layers.hidden), 0, -1):
        if (at_h := found[k]) is not None:
            spread(at_h * ranges.middle[k - 1][:, None, :], layers.hidden[k - 1].weights)
    return found


@dataclass(frozen=True)
class JacobianBox:
    """Entrywise bounds of ``row @ Jacobian`` with respect to the image and every activation.

    ``image`` has ends ``(batch, rows, pixels)``; ``activations`` has one entry per hidden layer, None if unused.
    """

    image: Interval
    activations: Sequence[Interval | None]


def interval_jacobian(ranges: SlopeRanges, rows: Float[Tensor, "batch rows classes"]) -> JacobianBox:
    """Bound ``row @ Jacobian`` by interval arithmetic, backward through the layers."""
    layers = ranges.layers
    zero = layers.graph.like.new_zeros(())
    found: list[Interval | None] = [None] * len(layers.layers)

    def spread(low: Tensor, high: Tensor, weights: dict[int, Tensor]) -> None:
        center, half = (low + high) / 2, (high - low) / 2
        for source, weight in weights.items():
            middle, width = center @ weight, half @ weight.abs()
            before = found[source] or Interval(zero, zero)
            found[source] = Interval(before.low + middle - width, before.high + middle + width)

    spread(rows, rows, layers.output.weights)
    for k in range(len(layers.hidden), 0, -1):
        if (at_h := found[k]) is not None:
            low, high = (end[:, None, :] for end in (ranges.low[k - 1], ranges.high[k - 1]))
            products = torch.stack([at_h.low * low, at_h.low * high, at_h.high * low, at_h.high * high])
            spread(products.amin(0), products.amax(0), layers.hidden[k - 1].weights)
    assert found[0] is not None
    return JacobianBox(found[0], found[1:])


def largest_dual_norm(box: Interval, order: float) -> Float[Tensor, "batch rows"]:
    """Return the largest norm of that order of any row in the box."""
    magnitude = torch.maximum(box.low.abs(), box.high.abs())
    return torch.linalg.vector_norm(magnitude, order, dim=2) * INFLATION


def jacobian(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes *shape"]:
    """Compute the gradients of each sample's logits with respect to its own image."""
    x = x.detach().requires_grad_(True)
    with torch.enable_grad():
        logits = model(x)
        parts = [
            torch.autograd.grad(logits[:, k].sum(), x, retain_graph=k + 1 < logits.shape[1])[0]
            for k in range(logits.shape[1])
        ]
    return torch.stack(parts, 1)


@dataclass(frozen=True)
class Linearised:
    """Linear functions of the logits with their gradients at the images.

    Attributes:
        rows: the rows of the specification.
        values: the rows' values at x.
        gradients: the rows' gradients at x, in pixels.
    """

    x: Float[Tensor, "batch *shape"]
    rows: Float[Tensor, "batch rows classes"]
    values: Float[Tensor, "batch rows"]
    gradients: Float[Tensor, "batch rows *shape"]

    @classmethod
    def at(cls, model: nn.Module, x: Tensor, rows: Tensor, beside: Tensor | None = None) -> "Linearised":
        """Linearise the rows of a float64 network at x; with the gradients at a point beside it if one is given."""
        with torch.no_grad():
            values = torch.einsum("brc,bc->br", rows, model(x))
        slopes = jacobian(model, x if beside is None else beside)
        return cls(x, rows, values, torch.einsum("brc,bc...->br...", rows, slopes))

    def steepness(self, norm: Norm) -> Float[Tensor, "batch rows"]:
        """Return the dual norms of the gradients."""
        return torch.linalg.vector_norm(self.gradients.flatten(2), DUAL[norm], dim=2)

    @property
    def offset(self) -> Float[Tensor, "batch rows"]:
        """The linearisation's value at the black image."""
        return self.values - (self.gradients * self.x[:, None]).flatten(2).sum(2)
