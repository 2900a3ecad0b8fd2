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
from verifiers.graph.rows import Rows, Shape

Bilinear = Callable[[Tensor, Tensor], Tensor]


class Product:
    """A bilinear function of two inputs: ``torch.mul`` with broadcasting, or ``torch.matmul``."""

    def __init__(self, function: Bilinear, left: Shape, right: Shape, after: Shape) -> None:
        self.function, self.left, self.right, self.after = function, left, right, after

    def forward(self, *values: Tensor) -> Tensor:
        return self.function(*self._aligned(*values))

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

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Planes":
        return _Planes(self, boxes)

    def _aligned(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Insert axes after the batch axis; broadcasting aligns last axes, and the batch axis must stay apart."""
        axes = max(len(self.left), len(self.right))
        return tuple(  # type: ignore[return-value]
            value.reshape(len(value), *(1,) * (axes + 1 - value.ndim), *value.shape[1:]) for value in (left, right)
        )


class _Planes:
    def __init__(self, product: Product, boxes: Sequence[Interval]) -> None:
        self.product = product
        self.centers = product._aligned(boxes[0].center, boxes[1].center)
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
            [Rows(_sum_to(to_left, self.product.left)), Rows(_sum_to(to_right, self.product.right))],
            constant.flatten(1).sum(1),
        )


def _sum_to(values: Tensor, shape: Shape) -> Tensor:
    """Sum over the axes that broadcasting added or stretched; the first axis is that of the rows."""
    while values.ndim > len(shape) + 1:
        values = values.sum(1)
    stretched = [axis + 1 for axis, size in enumerate(shape) if size == 1 and values.shape[axis + 1] > 1]
    return values.sum(stretched, keepdim=True) if stretched else values
