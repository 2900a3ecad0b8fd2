"""Bound the distance of the deployed network's logits from the exact ones, by any bound of the exact network.

Let F be the deployed network and f the exact one. Every node k of F is its exact operator plus a noise of at most e_k.
By the mean-value theorem, operator by operator, F - f = sum_k J_k n_k. The entries of J_k are products of difference
quotients of the operators between the two values of their inputs, and both values lie in the intervals of the noisy
network. An interval for J_k comes from a backward pass; its largest magnitudes times e_k add up to the bound.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.native.backward import block_of
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic
from verifiers.graph.affine import Affine
from verifiers.graph.graph import Node
from verifiers.graph.operators import Elementwise, Interval
from verifiers.graph.relaxations.convex import Log, Reciprocal, Rsqrt, Sqrt
from verifiers.graph.relaxations.max_pool import MaxPool
from verifiers.graph.relaxations.normalization import Normalization
from verifiers.graph.relaxations.products import Product, sum_to
from verifiers.graph.relaxations.slopes import jump, slopes
from verifiers.graph.relaxations.softmax import Softmax, SoftmaxOfSum
from verifiers.graph.rounding import magnitude
from verifiers.graph.rows import Rows, shape_size

#: Covers the rounding of the sums in float64.
INFLATION = 1 + 1e-6


class Coefficients(NamedTuple):
    """Entrywise bounds of the coefficients of a node, ``(rows, *shape)``."""

    low: Float[Tensor, "rows *shape"]
    high: Float[Tensor, "rows *shape"]

    @property
    def largest(self) -> Float[Tensor, "rows *shape"]:
        """The largest magnitudes."""
        return torch.maximum(-self.low, self.high)

    def plus(self, other: "Coefficients | None") -> "Coefficients":
        """Add other coefficients of the same node."""
        return self if other is None else Coefficients(self.low + other.low, self.high + other.high)

    def times(self, low: Tensor, high: Tensor) -> "Coefficients":
        """Multiply by entrywise factors."""
        products = [end * factor for end in self for factor in (low, high)]
        return Coefficients(
            torch.minimum(torch.minimum(*products[:2]), torch.minimum(*products[2:])),
            torch.maximum(torch.maximum(*products[:2]), torch.maximum(*products[2:])),
        )


def deviation(bounds: Bounds, rows: Float[Tensor, "batch rows classes"]) -> Float[Tensor, "batch rows"]:
    """Bound |rows @ (deployed logits - exact logits)| on each ball; inf where a value may overflow.

    It is 0 in real arithmetic.

    Args:
        bounds: propagated bounds.
        rows: linear functions of the logits.

    Raises:
        Unsupported: the difference quotients of an operator have no known bound; the message names it.
    """
    if bounds.arithmetic is Arithmetic.REAL:
        return rows.new_zeros(rows.shape[:2])
    assert bounds.noise is not None
    start, samples = bounds.merged(rows)
    block = block_of(max(shape_size(node.shape) for node in bounds.graph.nodes))
    with torch.no_grad():
        parts = [
            _of_rows(bounds, start.values[chunk].double(), samples[chunk])
            for chunk in torch.arange(len(samples), device=samples.device).split(block)
        ]
    found = torch.cat(parts).nan_to_num(nan=float("inf"), posinf=float("inf")) * INFLATION
    return found.masked_fill(bounds.noise.overflow[samples], float("inf")).reshape(rows.shape[:2])


def _of_rows(bounds: Bounds, values: Tensor, samples: Tensor) -> Float[Tensor, " rows"]:
    graph, noise = bounds.graph, bounds.noise
    assert noise is not None
    total = values.new_zeros(len(values))
    pending = {graph.output: Coefficients(values, values)}
    for position in range(graph.output, 0, -1):
        if (here := pending.pop(position, None)) is None:
            continue
        node = graph.nodes[position]
        if position in noise.errors:
            total = total + (here.largest * noise.errors[position][samples]).flatten(1).sum(1)
        if isinstance(node.operator, Elementwise) and (gap := jump(node.operator.activation)):
            total = total + gap * here.largest.flatten(1).sum(1)
        boxes = [Interval(*(end[samples] for end in bounds.intervals[i])) for i in node.inputs]
        for i, part in zip(node.inputs, _transposed(node, here, boxes), strict=True):
            pending[i] = part.plus(pending.get(i))
    return total


def _transposed(node: Node, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    """Bound the coefficients of a node's inputs from those of its output."""
    known = next((rule for kind, rule in _RULES.items() if isinstance(node.operator, kind)), None)
    if known is None:
        where = node.path or "the network itself"
        raise Unsupported(f"no bound of the rounding through operator {node.kind!r} at {where!r} is known")
    return known(node.operator, here, boxes)


def _affine(operator: Affine, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    middle, spread = (here.low + here.high) / 2, (here.high - here.low) / 2
    samples = torch.zeros(len(middle), dtype=torch.int64, device=middle.device)
    pushed = operator.push(Rows(middle), samples).inputs
    centers = [
        box.low.new_zeros(box.low.shape) if part is None else part.dense(box.low.shape[1:]).values
        for part, box in zip(pushed, boxes, strict=True)
    ]
    if not bool(spread.any()):
        return [Coefficients(center, center) for center in centers]
    # The half-widths |A| r are linear in r; their transpose is |A|^T.
    halves = torch.func.vjp(operator.half_width, *(torch.zeros_like(box.low) for box in boxes))[1](spread)
    return [Coefficients(center - half, center + half) for center, half in zip(centers, halves, strict=True)]


def _elementwise(operator: Elementwise, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    activation, (low, high) = operator.activation, boxes[0]
    if isinstance(activation, Log | Reciprocal | Rsqrt | Sqrt):  # their derivatives are monotone
        inside = activation.domain(low, high)
        ends = [activation.derivative(end) for end in (low, high)]
        least = torch.minimum(*ends).where(inside, -float("inf"))
        most = torch.maximum(*ends).where(inside, float("inf"))
        return [here.times(least, most)]
    return [here.times(*slopes(activation, low, high))]


def _max_pool(operator: MaxPool, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    """The difference of two maxima is a mean of the differences of the entries that can be the largest."""
    low, high = (operator.windowed(end) for end in boxes[0])
    rivals = high >= low.amax(-1, keepdim=True)
    sure = rivals & (rivals.sum(-1, keepdim=True) == 1)
    index = operator.index.clamp_min(0).flatten()

    def spread(values: Tensor, *, least: bool) -> Tensor:
        flat = values.reshape(*low.shape[:3], 1)
        weak = flat.clamp_max(0) if least else flat.clamp_min(0)
        each = torch.where(sure, flat, torch.where(rivals, weak, 0.0)).flatten(2)
        found = each.new_zeros((*low.shape[:2], operator.before[-2] * operator.before[-1]))
        return found.scatter_add(2, index.expand_as(each), each).reshape(boxes[0].low.shape)

    return [Coefficients(spread(here.low, least=True), spread(here.high, least=False))]


def _product(operator: Product, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    """A B - a b = (A - a) B + a (B - b): the coefficient of either factor is in the box of the other."""
    left, right = operator.aligned(*(magnitude(box) for box in boxes))
    if operator.function is not torch.mul:
        return [_around(here.largest @ right.mT), _around(left.mT @ here.largest)]
    ends = [operator.aligned(a, b) for a, b in zip(*boxes, strict=True)]
    to_left, to_right = here.times(ends[0][1], ends[1][1]), here.times(ends[0][0], ends[1][0])
    return [
        Coefficients(*(sum_to(end, operator.left) for end in to_left)),
        Coefficients(*(sum_to(end, operator.right) for end in to_right)),
    ]


def _softmax(operator: Softmax, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    """|J_ij| is at most p_i (delta_ij + p_j)."""
    highest = operator.interval(*boxes).high
    weighted = here.largest * highest
    found = _around(weighted + highest * weighted.sum(operator.axis, keepdim=True))
    return [_around(torch.zeros_like(weighted)), found] if isinstance(operator, SoftmaxOfSum) else [found]


def _normalization(operator: Normalization, here: Coefficients, boxes: list[Interval]) -> list[Coefficients]:
    """|J_ij| is at most t (delta_ij + (1 + |z_i z_j|) / n)."""
    span, scale = operator.ranges(boxes[0])
    size, largest = magnitude(span), here.largest
    mixed = largest.sum(-1, keepdim=True) + size * (largest * size).sum(-1, keepdim=True)
    return [_around(scale.high * (largest + mixed / operator.count))]


def _around(size: Tensor) -> Coefficients:
    return Coefficients(-size, size)


_RULES: dict[type, Callable[..., list[Coefficients]]] = {
    Affine: _affine,
    Elementwise: _elementwise,
    MaxPool: _max_pool,
    Product: _product,
    Softmax: _softmax,
    Normalization: _normalization,
}
