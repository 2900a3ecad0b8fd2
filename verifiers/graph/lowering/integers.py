"""Lower the operators of int8 networks; see ``verifiers.graph.integers``."""

import copy
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from verifiers.graph.affine import Convolution, Dense, General, Scale
from verifiers.graph.graph import Builder, Node, Ref
from verifiers.graph.operators import Elementwise, Interval
from verifiers.graph.relaxations.staircase import Staircase
from verifiers.graph.rounding import UNIT, UP, accumulated
from verifiers.graph.rows import Shape

#: Integers up to this size are float32 numbers.
WHOLE = 2.0**24
#: Sums beyond this leave int32.
LARGEST_SUM = 2.0**31 - 1
#: Roundings of a code's scale, in any order: of the scales of both factors and of the result, of their product and
#: quotient, of the product with the sum, and of one of these written out as a reciprocal.
SCALED = 6
#: Roundings of a term, besides those of the sum, where dequantised values are added: of the value, the weight and the
#: bias with its own scale, and of their product.
DEQUANTIZED = 5
#: The largest zero point of 8 bits: runtimes may add it in float32 before they round a product or a sum.
ZERO = 255.0


def _sum_error(
    size: Tensor, after: Tensor, steps: int | Tensor | None, scale: Tensor | None, bias: Tensor | None
) -> Tensor | None:
    """Bound the error of a sum of integers, or of its product with the quotient of scales.

    Args:
        size: the sum of the magnitudes of its terms.
        after: the largest magnitude of the result.
        steps: the roundings of a term where a runtime may add dequantised values; None for exact sums. These are
            rounded to float32 if they are above 2^24.
        scale: the quotient of scales; None for the sum itself.
        bias: its magnitudes; the sum that must stay in int32 may lack it.
    """
    alone = after if bias is None else after + bias.max()
    largest = alone if scale is None else alone / scale.abs()
    scaled = SCALED if scale is not None else 0
    if steps is not None:
        rounded = steps + (DEQUANTIZED + scaled)
        error = accumulated(size, rounded, tiny=rounded)
    elif scale is not None:
        error = accumulated(after, scaled + 1, tiny=2 + size)
    elif bool((largest <= WHOLE).all()):
        return None
    else:
        error = torch.where(after > WHOLE, UNIT * after * UP, 0.0)
    return error.where(largest <= LARGEST_SUM, torch.inf)


class IntegerSum:
    """Base of layers of codes: exact sums of integers, times the quotient of scales if there is one.

    Attributes:
        floats: a runtime may also add dequantised values in float32.
        open_bias: the bias is no integer, and a runtime may round it to one.
        scale: the quotient of scales, by which the weights and the bias are multiplied already.
    """

    floats, open_bias = False, False
    scale: Tensor | None = None

    def with_bias(self, error: Tensor | None) -> Tensor | None:
        """Add half a unit to the error of the sums, if the bias may be rounded."""
        if not self.open_bias:
            return error
        half = 0.5 * UP * (torch.ones(()) if self.scale is None else self.scale.abs())
        return half if error is None else error + half.to(error)


class IntegerDense(IntegerSum, Dense):
    """Apply x W^T + b to codes."""

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor | None:  # type: ignore[override]
        bias = None if self.bias is None else self.bias.abs()
        size = torch.nn.functional.linear(sizes[0], self.magnitude, bias) if self.floats else after
        return self.with_bias(_sum_error(size, after, self.steps if self.floats else None, self.scale, bias))


class IntegerConvolution(IntegerSum, Convolution):
    """Convolve codes."""

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor | None:  # type: ignore[override]
        bias = None if self.bias is None else self.bias.abs()
        size = self._convolve(sizes[0], self.magnitude, bias) if self.floats else after
        return self.with_bias(_sum_error(size, after, self.steps if self.floats else None, self.scale, bias))


class Rounded(Elementwise):
    """Round to codes. Rows tighten only the inputs that reach an end of the range: within it lines do not depend on
    the interval, up to half a step."""

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        steps, (low, high) = self.activation, boxes[0]
        assert isinstance(steps, Staircase)
        return [functools.reduce(torch.logical_or, [(low < end) & (high > end) for end in steps.ends])]


class Rescale(Scale):
    """Multiply by the quotient of scales, or divide by a scale, before values are rounded to codes."""

    def __init__(self, scale: Tensor, shape: Shape, *, divide: bool, added: float = 0.0) -> None:
        super().__init__(1 / scale if divide else scale, None, shape)
        self.added = added
        self.divisor = scale.reshape(self.scale.shape) if divide else None

    def linear(self, *values: Tensor) -> Tensor:
        return super().linear(*values) if self.divisor is None else values[0] / self.divisor

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(6) (|scale x| + |zero point|): runtimes multiply and divide the scales in different orders."""
        return accumulated(sizes[0] * self.scale.abs() + self.added, SCALED, tiny=1 + sizes[0])


class CodeSum(General):
    """Add two values with their ratios of scales, before the sum is rounded to codes.

    Args:
        added: what a runtime may add and subtract besides: the zero points times their ratios.
    """

    def __init__(
        self, ratios: Sequence[float], shapes: Sequence[Shape], after: Shape, like: Tensor, added: float
    ) -> None:
        left, right = ratios
        super().__init__(lambda a, b: left * a + right * b, shapes, after, like)
        self.added = added

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(6) of the magnitudes of the terms and of the zero points."""
        return accumulated(self.half_width(*sizes) + self.added, SCALED, tiny=2 + sizes[0] + sizes[1])


def _weights(builder: Builder, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(builder.like), None if bias is None else bias.to(builder.like)


def linear(builder: Builder, x: Ref, weight: Tensor, bias: Tensor | None, floats: bool) -> Ref:
    """Lower a linear layer of codes."""
    after = (*x.shape[:-1], len(weight))
    made = IntegerDense(*_weights(builder, weight, bias), after)
    made.floats, made.open_bias = floats, bias is not None and bias.is_floating_point()
    return builder.add(made, [x], after)


def conv(
    builder: Builder,
    x: Ref,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Sequence[int],
    groups: int,
    floats: bool,
) -> Ref:
    """Lower a convolution of codes."""
    stride, padding, dilation = geometry[:2], geometry[2:4], geometry[4:]
    span = [dilation[i] * (weight.shape[i + 2] - 1) + 1 for i in (0, 1)]
    size = [(x.shape[i - 2] + 2 * padding[i] - span[i]) // stride[i] + 1 for i in (0, 1)]
    after = (*x.shape[:-3], len(weight), *size)
    step, sides, gap = ((each[0], each[1]) for each in (stride, padding, dilation))
    made = IntegerConvolution(*_weights(builder, weight, bias), step, sides, gap, groups, before=x.shape, after=after)
    made.floats, made.open_bias = floats, bias is not None and bias.is_floating_point()
    return builder.add(made, [x], after)


def _scaled(builder: Builder, sums: Node, scale: Tensor) -> Ref | None:
    """Multiply the weights of a layer of codes by the quotients of scales; None if they do not fit it."""
    layer = sums.operator
    if not isinstance(layer, IntegerDense | IntegerConvolution) or layer.scale is not None:
        return None
    wanted = (len(layer.weight), 1, 1) if isinstance(layer, IntegerConvolution) else (len(layer.weight),)
    if scale.numel() > 1 and scale.shape != wanted:
        return None
    made, factor = copy.copy(layer), scale.reshape(-1)
    for known in ("magnitude", "last", "steps"):
        made.__dict__.pop(known, None)
    made.weight = layer.weight * factor.reshape(-1, *(1,) * (layer.weight.dim() - 1))
    made.bias = None if layer.bias is None else layer.bias * factor
    made.scale = scale
    return builder.add(made, [Ref(i, builder.nodes[i].shape) for i in sums.inputs], sums.shape)


def requantize(builder: Builder, x: Ref, scale: Tensor, divide: bool, low: float, high: float, shift: float) -> Ref:
    """Lower a change of scale and the rounding to codes after it."""
    scale = scale.to(builder.like)
    scaled = None if divide or shift else _scaled(builder, builder.nodes[x.node], scale)
    if scaled is None:
        zero = ZERO if divide and max(abs(low), abs(high)) <= ZERO else abs(shift)
        scaled = builder.add(Rescale(scale, x.shape, divide=divide, added=zero), [x], x.shape)
    return builder.add(Rounded(Staircase(low, high, odd=bool(shift % 2))), [scaled], x.shape)


def add(builder: Builder, a: Ref, b: Ref, ratios: Tensor, zeros: Tensor, low: float, high: float) -> Ref:
    """Lower a sum of two values in codes."""
    if not (isinstance(a, Ref) and isinstance(b, Ref)):
        raise builder.refuse("a constant as a term")
    after = tuple(torch.broadcast_shapes(a.shape, b.shape))
    left, right = (float(each) for each in ratios)
    zero = [abs(float(each)) for each in zeros]
    made = CodeSum((left, right), [a.shape, b.shape], after, builder.like, left * zero[0] + right * zero[1] + zero[2])
    steps = Staircase(low, high, odd=bool(zeros[2] % 2))
    return builder.add(Rounded(steps), [builder.add(made, [a, b], after)], after)


def dynamic(builder: Builder, x: Ref) -> Ref:
    """Refuse dynamic quantisation."""
    raise builder.refuse(
        "quantises by the range of its values, so every code depends on every value and has no useful bound: quantise "
        "the network statically, with calibration images"
    )


LOWERINGS: dict[str, Callable[..., Ref]] = {
    "certkd_int8::linear": linear,
    "certkd_int8::conv": conv,
    "certkd_int8::requantize": requantize,
    "certkd_int8::add": add,
    "certkd_int8::dynamic": dynamic,
}
