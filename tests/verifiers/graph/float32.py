"""Float32 evaluation in many orders, and the boxes that hold every one of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval, Operator

Array = np.ndarray
f32 = np.float32


def point(value: Tensor) -> Interval:
    return Interval(value, value)


def widened(operator: Operator, inputs: Sequence[Interval]) -> Interval:
    """The values that any machine computes for inputs in the boxes."""
    after = operator.interval(*inputs)
    error = operator.rounding(inputs, after)
    if error is None:
        return after
    assert error.shape == after.low.shape and error.dtype == torch.float64 and not bool((error < 0).any())
    return Interval(after.low - error, after.high + error)


def deployed(graph: Graph, low: Tensor, high: Tensor, node: int = -1) -> Interval:
    """The logits that any machine computes for images in a box, or the values of another node, by intervals."""
    shape = (len(low), *graph.nodes[0].shape)
    boxes = [Interval(low.double().reshape(shape), high.double().reshape(shape))]
    for each in graph.nodes[1:]:
        assert each.operator is not None
        boxes.append(widened(each.operator, [boxes[i] for i in each.inputs]))
    return Interval(*(end.flatten(1) for end in boxes[node]))


def outside(box: Interval, value: Tensor) -> float:
    """How far a value is outside a box, in half-widths; up to 1 is inside."""
    half = box.half_width.clamp_min(1e-300)
    return float(((value.double() - box.center).abs() / half).max())


# Sums of products in many orders: products (rows, n) are float32 numbers or exact, one row for each result


def _forward(terms: Array) -> Array:
    total = np.zeros(len(terms), f32)
    for column in terms.T:
        total = total + column
    return total


def _pairwise(terms: Array) -> Array:
    while terms.shape[1] > 1:
        if terms.shape[1] % 2:
            terms = np.concatenate([terms, np.zeros((len(terms), 1), f32)], 1)
        terms = terms[:, ::2] + terms[:, 1::2]
    return terms[:, 0]


def _blocked(terms: Array, size: int = 4) -> Array:
    """Lanes of a vector register, added up at the end."""
    spare = -terms.shape[1] % size
    lanes = np.concatenate([terms, np.zeros((len(terms), spare), f32)], 1).reshape(len(terms), -1, size)
    return _forward(np.stack([_forward(lanes[:, :, i]) for i in range(size)], 1))


def _exactly(terms: Array) -> Array:
    return np.array([math.fsum(row) for row in terms.astype(np.float64)]).astype(f32)


def _shuffled(terms: Array) -> Array:
    return _forward(terms[:, np.random.default_rng(0).permutation(terms.shape[1])])


def _by_size(terms: Array) -> Array:
    """The largest first: what is left of it after cancellation meets the rounding of small terms."""
    return _forward(np.take_along_axis(terms, np.argsort(-np.abs(terms), 1, kind="stable"), 1))


SUMS: dict[str, Callable[[Array], Array]] = {
    "forward": _forward,
    "backward": lambda terms: _forward(terms[:, ::-1]),
    "pairwise": _pairwise,
    "blocked": _blocked,
    "shuffled": _shuffled,
    "by size": _by_size,
    "exact sum of rounded products": _exactly,
}


def fused(weight: Array, x: Array, bias: Array) -> Array:
    """Fused multiply-add from the bias on: each product is exact, each sum is rounded once."""
    total = bias.astype(f32)
    for j in range(weight.shape[1]):
        exact = weight[:, j].astype(np.longdouble) * np.longdouble(x[j]) + total.astype(np.longdouble)
        total = exact.astype(f32)
    return total


def affine(weight: Array, x: Array, bias: Array | None) -> Iterator[tuple[str, Array]]:
    """Compute W x + b in float32 in every order; the bias last, first, or as one of the terms."""
    products = weight * x
    none = np.zeros(len(weight), f32)
    given = none if bias is None else bias
    for name, add in SUMS.items():
        yield name, add(products) + given
        yield f"{name}, with the bias", add(np.concatenate([given[:, None], products], 1))
    yield "fused", fused(weight, x, given)
    yield "fused, backward", fused(weight[:, ::-1], x[::-1], given)
    yield "fused, bias last", fused(weight, x, none) + given


def exactly(weight: Array, x: Array, bias: Array | None) -> list[Fraction]:
    """Compute W x + b exactly."""
    given = np.zeros(len(weight)) if bias is None else bias
    return [
        sum((Fraction(float(w)) * Fraction(float(v)) for w, v in zip(row, x, strict=True)), Fraction(float(b)))
        for row, b in zip(weight, given, strict=True)
    ]
