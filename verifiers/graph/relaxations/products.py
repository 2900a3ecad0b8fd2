"""Relax products of two inputs: entrywise with broadcasting (squeeze-and-excitation), and matrices (attention).

Write a = a0 + da with |da| <= ra, and b likewise. Then a b = a0 b + b0 a - a0 b0 + da db and |da db| <= ra rb, so the
two planes a0 b + b0 a - a0 b0 -+ ra rb enclose the product. They are the means of McCormick's two lower and two upper
planes, which are free: any mean of the two lower ones is a lower plane. Sums of planes enclose a matrix product.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.rounding import accumulated, magnitude
from verifiers.graph.rows import Rows, Shape, shape_size

Bilinear = Callable[[Tensor, Tensor], Tensor]
#: The most terms of a product whose planes are chosen term by term.
FREE = 2**12


class Product:
    """A bilinear function of two inputs: ``torch.mul`` with broadcasting, or ``torch.matmul``.

    Args:
        function: one of the two.
        left, right, after: shapes of the inputs and of the output.
        scale: a positive factor that float32 may apply to the inputs, instead of to the product as the graph does; None
            if there is none.
    """

    def __init__(self, function: Bilinear, left: Shape, right: Shape, after: Shape, scale: float | None = None) -> None:
        self.function, self.left, self.right, self.after, self.scale = function, left, right, after, scale

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*self.aligned(*values))

    def interval(self, *boxes: Interval) -> Interval:
        if self.function is torch.mul:
            corners = [self.forward(a, b) for a in boxes[0] for b in boxes[1]]
            return Interval(torch.stack(corners).amin(0), torch.stack(corners).amax(0))
        (a, b), (ra, rb) = ([box.center for box in boxes], [box.half_width for box in boxes])
        center = self.forward(a, b)
        half = self.forward(a.abs(), rb) + self.forward(ra, b.abs()) + self.forward(ra, rb)
        return Interval(center - half, center + half)

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        return [box.high > box.low for box in boxes]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor:
        """gamma(1) of the product; gamma(n) |a| |b| for a product of matrices with n terms per entry, and with a scale
        gamma(n + 6) |a| |b|: the scale or its root is rounded, and multiplied with one of the inputs or with both."""
        if self.function is torch.mul:
            return accumulated(magnitude(after), 1)
        left, right = (magnitude(box) for box in boxes)
        steps, count = self.left[-1], float(self.left[-1])
        if self.scale is None:
            return accumulated(self.forward(left, right), steps, tiny=count)
        lost = (1 + float(left.max()) + float(right.max())) * max(self.scale, 1 / self.scale)
        return accumulated(self.forward(left, right), steps + 6, tiny=count * lost, largest=max(1.0, self.scale))

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Planes | _FreePlanes":
        return _Planes(self, boxes) if alpha is None else _FreePlanes(self, boxes, alpha)

    @cached_property
    def terms(self) -> Shape:
        """The shape of all products of two entries, before they are summed."""
        if self.function is torch.mul:
            return self.after
        left, right = (len(self.after) * (1,) + shape for shape in (self.left, self.right))
        batch = torch.broadcast_shapes(left[-len(self.after) : -2], right[-len(self.after) : -2])
        return (*batch, self.left[-2], self.left[-1], self.right[-1])

    @property
    def free(self) -> bool:
        """True if there are few enough terms to choose planes for each."""
        return shape_size(self.terms) <= FREE

    def transposed(self, values: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply values of the output by the other factor, for each input."""
        if self.function is torch.mul:
            return sum_to(values * right, self.left), sum_to(values * left, self.right)
        return sum_to(values @ right.mT, self.left), sum_to(left.mT @ values, self.right)

    def paired(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of each term, in shapes that broadcast to ``terms``."""
        left, right = self.aligned(left, right)
        return (left, right) if self.function is torch.mul else (left.unsqueeze(-1), right.unsqueeze(-3))

    def aligned(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Insert axes after the batch axis; broadcasting aligns last axes, and the batch axis must stay apart."""
        axes = max(len(self.left), len(self.right))
        return tuple(  # type: ignore[return-value]
            value.reshape(len(value), *(1,) * (axes + 1 - value.ndim), *value.shape[1:]) for value in (left, right)
        )


class _Planes:
    def __init__(self, product: Product, boxes: Sequence[Interval]) -> None:
        self.product = product
        self.centers = product.aligned(boxes[0].center, boxes[1].center)
        self.offset = product.forward(boxes[0].center, boxes[1].center)
        self.error = product.forward(boxes[0].half_width, boxes[1].half_width)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.dense(self.product.after)
        values = rows.values
        left, right = (rows.gather(center, samples) for center in self.centers)
        constant = -(values * rows.gather(self.offset, samples) + values.abs() * rows.gather(self.error, samples))
        inputs = [Rows(part) for part in self.product.transposed(values, left, right)]
        return Pushed(inputs, constant.flatten(1).sum(1))


class _FreePlanes:
    """McCormick's planes, mixed term by term: with t from 0 to 1,

    a b >= (t a0 + (1 - t) a1) b + (t b0 + (1 - t) b1) a - t a0 b0 - (1 - t) a1 b1 and
    a b <= (t a1 + (1 - t) a0) b + (t b0 + (1 - t) b1) a - t a1 b0 - (1 - t) a0 b1 for a in [a0, a1], b in [b0, b1].
    """

    def __init__(self, product: Product, boxes: Sequence[Interval], alpha: Alpha) -> None:
        self.product = product
        (a0, b0), (a1, b1) = (product.paired(boxes[0][side], boxes[1][side]) for side in (0, 1))
        t, s = alpha
        constants = -torch.lerp(a1 * b1, a0 * b0, t), -torch.lerp(a0 * b1, a1 * b0, s)
        self.to_left = torch.lerp(b1, b0, t), torch.lerp(b1, b0, s)
        self.to_right = torch.lerp(a1, a0, t), torch.lerp(a0, a1, s)
        self.constant = constants if product.function is torch.mul else tuple(term.sum(-2) for term in constants)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        product = self.product
        rows = rows.dense(product.after)
        positive = rows.values.clamp_min(0)
        signed = positive, rows.values - positive

        def added(planes: Sequence[Tensor], axis: int) -> Tensor:
            """Apply one plane to the positive coefficients and one to the negative ones, and sum over an axis."""
            if axis == 0:
                parts = [v * rows.gather(plane, samples) for v, plane in zip(signed, planes, strict=True)]
            elif len(planes[0]) == 1:  # products of matrices, without the single terms
                letters = "r...ij,...ikj->r...ik" if axis == -1 else "r...ij,...ikj->r...kj"
                parts = [torch.einsum(letters, v, plane[0]) for v, plane in zip(signed, planes, strict=True)]
            else:
                whole = [v.unsqueeze(-2) * rows.gather(plane, samples) for v, plane in zip(signed, planes, strict=True)]
                parts = [part.sum(axis) for part in whole]
            return parts[0] + parts[1]

        axes = (0, 0) if product.function is torch.mul else (-1, -3)
        left, right = (
            sum_to(added(planes, axis), shape)
            for planes, axis, shape in zip(
                (self.to_left, self.to_right), axes, (product.left, product.right), strict=True
            )
        )
        return Pushed([Rows(left), Rows(right)], added(self.constant, 0).flatten(1).sum(1))


def sum_to(values: Tensor, shape: Shape) -> Tensor:
    """Sum over the axes that broadcasting added or stretched; the first axis is that of the rows."""
    while values.ndim > len(shape) + 1:
        values = values.sum(1)
    stretched = [axis + 1 for axis, size in enumerate(shape) if size == 1 and values.shape[axis + 1] > 1]
    return values.sum(stretched, keepdim=True) if stretched else values
