"""Relax products of two inputs: entrywise with broadcasting (squeeze-and-excitation), and matrices (attention).

Write a = a0 + da with |da| <= ra, and b likewise. Then a b = a0 b + b0 a - a0 b0 + da db and |da db| <= ra rb, so the
two planes a0 b + b0 a - a0 b0 -+ ra rb enclose the product. They are the means of McCormick's two lower and two upper
planes. The sum of the planes encloses a sum of products (a matrix product).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.rounding import accumulated, magnitude
from verifiers.graph.rows import Rows, Shape

Bilinear = Callable[[Tensor, Tensor], Tensor]


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

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Planes":
        return _Planes(self, boxes)

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
        if self.product.function is torch.mul:
            to_left, to_right = values * right, values * left
        else:
            to_left, to_right = values @ right.mT, left.mT @ values
        return Pushed(
            [Rows(sum_to(to_left, self.product.left)), Rows(sum_to(to_right, self.product.right))],
            constant.flatten(1).sum(1),
        )


def sum_to(values: Tensor, shape: Shape) -> Tensor:
    """Sum over the axes that broadcasting added or stretched; the first axis is that of the rows."""
    while values.ndim > len(shape) + 1:
        values = values.sum(1)
    stretched = [axis + 1 for axis, size in enumerate(shape) if size == 1 and values.shape[axis + 1] > 1]
    return values.sum(stretched, keepdim=True) if stretched else values
