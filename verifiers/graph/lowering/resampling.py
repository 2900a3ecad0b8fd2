"""Lower interpolations that work along rows and columns one after the other: smoothed bilinear, and bicubic."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import General
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.shapes import refuse_refs
from verifiers.graph.rounding import accumulated
from verifiers.graph.rows import Shape


class Separable(General):
    """Multiply maps by a matrix from the left and by another from the right."""

    def __init__(self, rows: Tensor, columns: Tensor, before: Shape, after: Shape, like: Tensor) -> None:
        self.taps = [int((matrix != 0).sum(1).max()) for matrix in (rows, columns)]
        self.sums = float(rows.abs().sum(1).max() * columns.abs().sum(1).max())
        super().__init__(
            lambda value: rows @ value @ columns.mT,
            [before],
            after,
            like,
            lambda value: rows.abs() @ value @ columns.abs().mT,
            steps=sum(self.taps) + 16,
        )

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(n) of the largest magnitude M of a map, times the weights' sum.

        A weight is a function of slope 2 or less of a position, which is off by 4 u (side + 2): so the n weights of an
        output, which add up to 1 after they are divided by their sum of 1/2 or more, are off by 64 u (side + 4)
        together. The sums and the division add the number of terms and 8 for each side.
        """
        largest = sizes[0].amax((-2, -1), keepdim=True).expand(len(sizes[0]), *self.after)
        steps = sum(64 * (side + 4) + taps + 8 for side, taps in zip(self.before[0][-2:], self.taps, strict=True))
        return accumulated(largest * self.sums, steps, tiny=steps, largest=4.0)


def separable(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """Make the lowering of an interpolation whose weights are products of one for the row and one for the column."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        refuse_refs(builder, args, kwargs)
        height, width = x.shape[-2:]
        after = tuple(target(builder.like.new_zeros(x.shape), *args, **kwargs).shape)
        eyes = (torch.eye(side, dtype=builder.like.dtype, device=builder.like.device) for side in (height, width))
        tall, wide = (eye[None] for eye in eyes)
        rows = target(tall[..., None].expand(1, height, height, width).contiguous(), *args, **kwargs)[0, :, :, 0].mT
        columns = target(wide[:, :, None].expand(1, width, height, width).contiguous(), *args, **kwargs)[0, :, 0].mT
        return builder.add(Separable(rows, columns, x.shape, after, builder.like), [x], after)

    return lower
