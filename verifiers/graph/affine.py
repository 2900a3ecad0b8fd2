"""Affine operators: exact in both directions.

For y = A x + b the range over a box with centre c and half-width r is A c + b -+ |A| r, and rows w y = (A^T w) x + w b.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.rows import Rows, Shape

Function = Callable[..., Tensor]


class Affine:
    """Base of the affine operators; a subclass defines ``forward``, ``half_width`` and ``push``."""

    def forward(self, *values: Tensor) -> Tensor:
        raise NotImplementedError

    def linear(self, *values: Tensor) -> Tensor:
        """Compute A x."""
        return self.forward(*values)

    def half_width(self, *half_widths: Tensor) -> Tensor:
        """Compute |A| r."""
        raise NotImplementedError

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        raise NotImplementedError

    def interval(self, *boxes: Interval) -> Interval:
        center, half = self.forward(*(box.center for box in boxes)), self.half_width(*(box.half_width for box in boxes))
        return Interval(center - half, center + half)

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "Affine":
        return self

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[None]:
        return [None] * len(boxes)


class Reshape(Affine):
    """Give the same entries another shape."""

    def __init__(self, before: Shape, after: Shape) -> None:
        self.before, self.after = before, after

    def forward(self, *values: Tensor) -> Tensor:
        return values[0].reshape(len(values[0]), *self.after)

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return self.forward(*half_widths)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.dense(self.after)
        return Pushed([rows.take(rows.values.reshape(len(rows.values), *self.before))])


class Dense(Affine):
    """Apply x W^T + b to the last axis."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, after: Shape) -> None:
        self.weight, self.bias, self.magnitude, self.after = weight, bias, weight.abs(), after

    def interval(self, *boxes: Interval) -> Interval:
        low, high = boxes[0]
        center = F.linear(low + high, self.weight / 2, self.bias)  # exact, and cheaper than halving the values
        half = F.linear(high - low, self.magnitude / 2)
        return Interval(center - half, center + half)

    def forward(self, *values: Tensor) -> Tensor:
        return F.linear(values[0], self.weight, self.bias)

    def linear(self, *values: Tensor) -> Tensor:
        return F.linear(values[0], self.weight)

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return F.linear(half_widths[0], self.magnitude)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.dense(self.after)
        values = rows.values
        constant = None if self.bias is None else values.reshape(len(values), -1, len(self.bias)).sum(1) @ self.bias
        return Pushed([rows.take(values @ self.weight)], constant)


class Scale(Affine):
    """Apply scale x + shift entry by entry; both broadcast to the node's shape."""

    def __init__(self, scale: Float[Tensor, "..."], shift: Float[Tensor, "..."] | None, shape: Shape) -> None:
        self.shape = shape
        self.scale = scale.reshape((1,) * (len(shape) - scale.ndim) + scale.shape)
        self.shift = None if shift is None else shift.expand(shape)

    def forward(self, *values: Tensor) -> Tensor:
        scaled = self.linear(*values)
        return scaled if self.shift is None else scaled + self.shift

    def linear(self, *values: Tensor) -> Tensor:
        return values[0] * self.scale

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return half_widths[0] * self.scale.abs()

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        if rows.window is not None and self.scale.shape[-2:].numel() > 1:
            rows = rows.dense(self.shape)
        constant = None
        if self.shift is not None:
            constant = (rows.values * rows.gather(self.shift[None], samples)).flatten(1).sum(1)
        scale = self.scale if rows.window is None else self.scale.reshape(1, -1, 1, 1)
        return Pushed([rows.take(rows.values * scale)], constant)


class Sum(Affine):
    """Add inputs of one shape, each with its sign."""

    def __init__(self, signs: Sequence[int]) -> None:
        self.signs = signs

    def forward(self, *values: Tensor) -> Tensor:
        return sum((value if sign > 0 else -value for sign, value in zip(self.signs, values, strict=True)))  # type: ignore[return-value]

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return sum(half_widths)  # type: ignore[return-value]

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        return Pushed([rows if sign > 0 else rows.take(-rows.values) for sign in self.signs])


class Convolution(Affine):
    """A two-dimensional convolution with zero padding."""

    def __init__(
        self,
        weight: Float[Tensor, "out in height width"],
        bias: Float[Tensor, " out"] | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        before: Shape,
        after: Shape,
    ) -> None:
        self.weight, self.bias, self.magnitude = weight, bias, weight.abs()
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.before, self.after = before, after

    @cached_property
    def last(self) -> Tensor:
        """The weight with its channels last in memory."""
        return self.weight.contiguous(memory_format=torch.channels_last)

    def interval(self, *boxes: Interval) -> Interval:
        low, high = boxes[0]
        center = self._convolve(low + high, self.weight / 2, self.bias)  # exact, and cheaper than halving the values
        half = self._convolve(high - low, self.magnitude / 2, None)
        return Interval(center - half, center + half)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        maps = F.conv2d(x.flatten(0, -4), weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return maps.reshape(len(x), *self.after)

    def forward(self, *values: Tensor) -> Tensor:
        return self._convolve(values[0], self.weight, self.bias)

    def linear(self, *values: Tensor) -> Tensor:
        return self._convolve(values[0], self.weight, None)

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return self._convolve(half_widths[0], self.magnitude, None)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.windowed(self.after)
        if rows.window is None:
            return self._push_maps(rows)
        rows = rows.masked(self.after)
        assert rows.window is not None
        window = rows.window
        stride = (window.stride[0] * self.stride[0], window.stride[1] * self.stride[1])
        offset = tuple(window.offset[i] * self.stride[i] - self.padding[i] for i in (0, 1))
        values, constant = self._transposed(rows.values), self._constant(rows.values)
        moved = type(window)(window.start, stride, (offset[0], offset[1]), clean=False)
        return Pushed([Rows(values, moved).windowed(self.before)], constant)

    def _push_maps(self, rows: Rows) -> Pushed:
        maps = rows.values.flatten(0, -4)
        spare = [
            (self.before[i] + 2 * self.padding[i] - self.dilation[i] * (self.weight.shape[i] - 1) - 1) % self.stride[i]
            for i in (-2, -1)
        ]
        maps = maps.contiguous(memory_format=torch.channels_last)
        values = F.conv_transpose2d(maps, self.last, None, self.stride, self.padding, spare, self.groups, self.dilation)
        return Pushed([rows.take(values.reshape(len(rows.values), *self.before))], self._constant(rows.values))

    def _constant(self, values: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        return values.sum((-2, -1)).reshape(len(values), -1, len(self.bias)).sum(1) @ self.bias

    def _transposed(self, values: Tensor) -> Tensor:
        if values.shape[-2:] == (1, 1) and self.groups == 1 and self.dilation == (1, 1):
            return (values.flatten(1) @ self.weight.flatten(1)).reshape(len(values), *self.weight.shape[1:])
        values = values.contiguous(memory_format=torch.channels_last)  # the layout from which windows are read
        return F.conv_transpose2d(values, self.last, None, self.stride, groups=self.groups, dilation=self.dilation)


class General(Affine):
    """Any jointly affine function of its inputs; automatic differentiation gives its transpose.

    Args:
        function: takes one value per input, in the node's shapes for one sample.
        before: shapes of the inputs.
        after: shape of the output.
        absolute: the function with every coefficient replaced by its magnitude and no constant. None uses the linear
            part of ``function`` itself, which is right for functions that only pick, copy, add and average.
        like: a tensor that gives the dtype and the device.
    """

    def __init__(
        self, function: Function, before: Sequence[Shape], after: Shape, like: Tensor, absolute: Function | None = None
    ) -> None:
        self.before, self.after = before, after
        zeros = [like.new_zeros(shape) for shape in before]
        constant, transpose = torch.func.vjp(function, *zeros)[:2]
        self._constant = constant if bool(constant.any()) else None
        self._function = torch.vmap(function)
        self._transpose = torch.vmap(transpose)
        self._again = torch.func.vjp(transpose, constant)[1]
        self._absolute = self.linear if absolute is None else torch.vmap(absolute)

    def forward(self, *values: Tensor) -> Tensor:
        return self._function(*values)

    def linear(self, *values: Tensor) -> Tensor:
        if self._constant is None:
            return self.forward(*values)
        return torch.vmap(lambda *one: self._again(one)[0])(*values)  # subtracting a large constant would lose digits

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return self._absolute(*half_widths)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.dense(self.after)
        constant = None if self._constant is None else rows.values.flatten(1) @ self._constant.flatten()
        return Pushed([rows.take(part) for part in self._transpose(rows.values)], constant)
