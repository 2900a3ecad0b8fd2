"""Affine operators: exact in both directions.

For y = A x + b the range over a box with centre c and half-width r is A c + b -+ |A| r, and rows w y = (A^T w) x + w b.
"""

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.rounding import accumulated, common_value, magnitude, nearest, representable, steps_of
from verifiers.graph.rows import Rows, Shape

Function = Callable[..., Tensor]


class Affine:
    """Base of the affine operators; a subclass defines ``forward``, ``half_width``, ``push`` and ``error``.

    Attributes:
        computed: False for an operator that no machine computes, because it only relates other values.
        perturbation: bounds the effect of errors in the operator's own constants, from the magnitudes of the inputs.
    """

    computed = True
    perturbation: Function | None = None

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

    def middle(self, *boxes: Interval) -> tuple[Tensor, Tensor]:
        """Compute the centre and the half-width of the outputs over a box of the inputs."""
        return self.forward(*(box.center for box in boxes)), self.half_width(*(box.half_width for box in boxes))

    def interval(self, *boxes: Interval) -> Interval:
        center, half = self.middle(*boxes)
        return Interval(center - half, center + half)

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "Affine":
        return self

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor | None:
        """Bound the error of float32 from the largest magnitudes of the inputs and of the output."""
        raise NotImplementedError

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor | None:
        if not self.computed:
            return None
        sizes = [magnitude(box) for box in boxes]
        error = self.error(sizes, magnitude(after))
        if self.perturbation is None:
            return error
        moved = self.perturbation(*sizes).nan_to_num(torch.inf, torch.inf)
        return moved if error is None else error + moved

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

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> None:
        return None


class Dense(Affine):
    """Apply x W^T + b to the last axis."""

    def __init__(self, weight: Float[Tensor, "out in"], bias: Float[Tensor, " out"] | None, after: Shape) -> None:
        self.weight, self.bias, self.after = weight, bias, after

    @cached_property
    def magnitude(self) -> Tensor:
        """The magnitude of each weight."""
        return self.weight.abs()

    def middle(self, *boxes: Interval) -> tuple[Tensor, Tensor]:
        (low, high), half = boxes[0], self.weight / 2  # exact, and cheaper than halving the values
        return F.linear(low + high, half, self.bias), F.linear(high - low, half.abs())

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

    @cached_property
    def steps(self) -> int | Int[Tensor, " out"]:
        """The roundings of each sum: one per weight that is not 0, and one for the bias."""
        return common_value((self.weight != 0).sum(1) + 1 + (not representable(self.weight)))

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(n + 1) (|W| |x| + |b|) for n weights that are not 0; products with 0 are exact."""
        size = F.linear(sizes[0], self.magnitude, None if self.bias is None else self.bias.abs())
        return accumulated(size, self.steps, tiny=self.steps)


class Scale(Affine):
    """Apply scale x + shift entry by entry; both broadcast to the node's shape.

    Args:
        scale, shift: constants.
        shape: the node's shape.
        sums: the roundings of the sum; 2 if float32 may merge the shift with another constant before.
        shift_steps: the roundings of the shift itself, if it is a product.
    """

    def __init__(
        self,
        scale: Float[Tensor, "..."],
        shift: Float[Tensor, "..."] | None,
        shape: Shape,
        *,
        sums: int = 1,
        shift_steps: int = 0,
    ) -> None:
        self.shape, self.sums, self.shift_steps = shape, sums, shift_steps
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

    @cached_property
    def steps(self) -> int:
        """The roundings of the product; one more than of a product, as quotients by constants may be computed so."""
        steps = steps_of(self.scale)
        return steps + (steps > 1)

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor | None:
        """The product is off by gamma(1) |scale x| for a float32 number as the scale, gamma(3) for others, as they are
        rounded first, and quotients are products with a reciprocal; 0 for the scales 0, 1 and -1. The sum is off by
        gamma(sums) of its own value, and the shift by its distance from float32."""
        if self.steps == 0 and self.shift is None:
            return None
        tiny = (1 + sizes[0]) * (self.steps > 0)
        product = accumulated(sizes[0] * self.scale.abs(), self.steps, tiny=tiny)
        if self.shift is None:
            return product
        moved = product + (nearest(self.shift) - self.shift).abs()
        if self.shift_steps:
            moved = moved + accumulated(self.shift.abs(), self.shift_steps)
        return moved + accumulated(after + moved, self.sums, tiny=0.0)


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

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(n - 1) of the magnitudes of n terms; of the sum itself for two terms."""
        if len(sizes) == 2:
            return accumulated(after, 1, tiny=0.0)
        return accumulated(torch.stack(list(sizes)).sum(0), len(sizes) - 1, tiny=0.0)


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
        self.weight, self.bias = weight, bias
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups
        self.before, self.after = before, after

    @cached_property
    def magnitude(self) -> Tensor:
        """The magnitude of each weight."""
        return self.weight.abs()

    @cached_property
    def last(self) -> Tensor:
        """The weight with its channels last in memory."""
        return self.weight.contiguous(memory_format=torch.channels_last)

    def middle(self, *boxes: Interval) -> tuple[Tensor, Tensor]:
        (low, high), half = boxes[0], self.weight / 2  # exact, and cheaper than halving the values
        return self._convolve(low + high, half, self.bias), self._convolve(high - low, half.abs(), None)

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
        window = rows.window
        assert window is not None
        stride = (window.stride[0] * self.stride[0], window.stride[1] * self.stride[1])
        offset = tuple(window.offset[i] * self.stride[i] - self.padding[i] for i in (0, 1))
        moved = type(window)(window.start, stride, (offset[0], offset[1]), clean=False)
        return Pushed([Rows(self._transposed(rows.values), moved).windowed(self.before)], self._constant(rows.values))

    @cached_property
    def steps(self) -> int | Int[Tensor, "out 1 1"]:
        """The roundings of each sum: one per weight that is not 0, and one for the bias."""
        counts = (self.weight != 0).flatten(1).sum(1) + 1 + (not representable(self.weight))
        return common_value(counts[:, None, None])

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(n + 1) (|W| |x| + |b|) for the n weights of a kernel that are not 0, padded or not."""
        size = self._convolve(sizes[0], self.magnitude, None if self.bias is None else self.bias.abs())
        return accumulated(size, self.steps, tiny=self.steps)

    @cached_property
    def _entrywise(self) -> bool:
        """True if each entry is multiplied by the factor of its channel."""
        plain = (self.stride, self.padding) == ((1, 1), (0, 0))
        return plain and self.weight.shape[1:] == (1, 1, 1) and self.groups == len(self.weight) == self.before[-3]

    @cached_property
    def _apart(self) -> bool:
        """True if the windows are apart from each other and cover the whole map, as those of patch embeddings do."""
        height, width = self.weight.shape[-2:]
        whole = self.before[-2] == height * self.after[-2] and self.before[-1] == width * self.after[-1]
        return self.stride == (height, width) and self.groups == 1 and self.dilation == (1, 1) and whole

    def _push_maps(self, rows: Rows) -> Pushed:
        maps, constant = rows.values.flatten(0, -4), self._constant(rows.values)
        if self._entrywise or self._apart:
            by_patch = "nohw,ocij->nchiwj"
            values = (
                maps * self.weight.reshape(-1, 1, 1) if self._entrywise else torch.einsum(by_patch, maps, self.weight)
            )
            return Pushed([rows.take(values.reshape(len(rows.values), *self.before))], constant)
        spare = [
            (self.before[i] + 2 * self.padding[i] - self.dilation[i] * (self.weight.shape[i] - 1) - 1) % self.stride[i]
            for i in (-2, -1)
        ]
        maps = maps.contiguous(memory_format=torch.channels_last)
        values = F.conv_transpose2d(maps, self.last, None, self.stride, self.padding, spare, self.groups, self.dilation)
        return Pushed([rows.take(values.reshape(len(rows.values), *self.before))], constant)

    def _constant(self, values: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        return values.sum((-2, -1)).reshape(len(values), -1, len(self.bias)).sum(1) @ self.bias

    def _transposed(self, values: Tensor) -> Tensor:
        if self._entrywise:
            return values * self.weight.reshape(-1, 1, 1)
        if values.shape[-2:] == (1, 1) and self.groups == 1 and self.dilation == (1, 1):
            return (values.flatten(1) @ self.weight.flatten(1)).reshape(len(values), *self.weight.shape[1:])
        values = values.contiguous(memory_format=torch.channels_last)  # the layout from which windows are read
        return F.conv_transpose2d(values, self.last, None, self.stride, groups=self.groups, dilation=self.dilation)


class Average(Convolution):
    """Average pooling with one divisor, as a convolution: the entries of a window are added before they are divided."""

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(n + 1) of the mean magnitude of n entries: n - 1 sums, then a quotient, or a rounded reciprocal and a
        product. The sum is 1 / weight times as large as the mean."""
        size = self._convolve(sizes[0], self.magnitude, None)
        largest = (1 / self.magnitude.min()).clamp_min(1.0)
        return accumulated(size, self.steps, tiny=self.steps, largest=largest)


class General(Affine):
    """Any jointly affine function of its inputs; automatic differentiation gives its transpose.

    Args:
        function: takes one value per input, in the node's shapes for one sample.
        before: shapes of the inputs.
        after: shape of the output.
        absolute: the function with every coefficient replaced by its magnitude and no constant. None uses the linear
            part of ``function`` itself, which is right for functions that only pick, copy, add and average.
        like: a tensor that gives the dtype and the device.
        steps: the roundings that a term of an entry passes through in float32; 0 if entries are only moved. Sums before
            a division by their number are at most ``steps`` times as large as what the absolute function gives.
    """

    def __init__(
        self,
        function: Function,
        before: Sequence[Shape],
        after: Shape,
        like: Tensor,
        absolute: Function | None = None,
        steps: int = 0,
    ) -> None:
        self.before, self.after, self.steps = before, after, steps
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

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor | None:
        """gamma(steps) (|A| |x| + |b|)."""
        if self.steps == 0:
            return None
        size = self._absolute(*sizes)
        if self._constant is not None:
            size = size + self._constant.abs()
        return accumulated(size, self.steps, tiny=self.steps, largest=self.steps)
