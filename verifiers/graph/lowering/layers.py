"""Lower layers with weights, normalisations and pooling."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import Average, Convolution, Dense, Reshape, Scale
from verifiers.graph.batch_norm import BatchNorm
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.shapes import Value, averaging, general, refuse_refs
from verifiers.graph.relaxations.max_pool import MaxPool
from verifiers.graph.relaxations.normalization import Normalization
from verifiers.graph.rows import Shape

aten = torch.ops.aten


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def linear(builder: Builder, x: Ref, weight: Value, bias: Value = None) -> Ref:
    refuse_refs(builder, (weight, bias), {})
    if not isinstance(x, Ref):
        raise builder.refuse("weights that depend on the image")
    after = (*x.shape[:-1], len(weight))
    return builder.add(Dense(weight, bias, after), [x], after)


def conv2d(
    builder: Builder,
    x: Ref,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Ref:
    refuse_refs(builder, (weight, bias), {})
    if isinstance(padding, str):
        x, padding = _same(builder, x, weight, padding, _pair(dilation))
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    arguments = (stride, padding, dilation, groups)
    span = [dilation[i] * (weight.shape[i + 2] - 1) + 1 for i in (0, 1)]
    size = [(x.shape[i - 2] + 2 * padding[i] - span[i]) // stride[i] + 1 for i in (0, 1)]
    after = (*x.shape[:-3], len(weight), *size)
    return builder.add(Convolution(weight, bias, *arguments, before=x.shape, after=after), [x], after)


def _same(builder: Builder, x: Ref, weight: Tensor, padding: str, dilation: tuple[int, int]) -> tuple[Ref, Any]:
    """Pad as padding="same" does, with the odd row and column at the end."""
    if padding == "valid":
        return x, 0
    total = [dilation[i] * (weight.shape[i + 2] - 1) for i in (0, 1)]
    before = [t // 2 for t in total]
    if all(t % 2 == 0 for t in total):
        return x, before
    sides = [before[1], total[1] - before[1], before[0], total[0] - before[0]]
    return general(builder, lambda value: aten.constant_pad_nd(value, sides), [x], steps=0), 0


def convolution(target: Callable[..., Tensor], *, inputs: int = 1) -> Callable[..., Ref]:
    """Make the lowering of a convolution of another dimension, or of a transposed one.

    ``inputs`` is the axis of the weight that counts inputs, 0 if the convolution is transposed.
    """

    def lower(builder: Builder, x: Ref, weight: Value, bias: Value = None, *args: Any, **kwargs: Any) -> Ref:
        refuse_refs(builder, (weight, bias, args), kwargs)
        magnitude = weight.abs()
        return general(
            builder,
            lambda value: target(value, weight, bias, *args, **kwargs),
            [x],
            lambda half: target(half, magnitude, None, *args, **kwargs),
            steps=weight.numel() // weight.shape[1 - inputs] + 1,
        )

    return lower


def batch_norm(
    builder: Builder, x: Ref, weight: Value, bias: Value, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> list[Ref]:
    return [builder.add(BatchNorm(weight, bias, mean, var, eps, x.shape), [x], x.shape)]


def fixed_batch_norm(
    builder: Builder,
    x: Ref,
    weight: Value,
    bias: Value,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Ref:
    if training or mean is None or var is None:
        raise builder.refuse("it takes its statistics from the batch")
    return batch_norm(builder, x, weight, bias, mean, var, momentum, eps)[0]


def _channels(builder: Builder, x: Ref, scale: Tensor | None, shift: Tensor | None) -> Ref:
    """Append scale x + shift with one value per channel, the second axis."""
    if scale is None and shift is None:
        return x
    tail = (1,) * (len(x.shape) - 2)
    scale = builder.like.new_ones(x.shape[1]) if scale is None else scale
    made = Scale(scale.reshape(-1, *tail), None if shift is None else shift.reshape(-1, *tail), x.shape, sums=2)
    return builder.add(made, [x], x.shape)


def layer_norm(
    builder: Builder, x: Ref, shape: Sequence[int], weight: Value = None, bias: Value = None, eps: float = 1e-5, *_: Any
) -> Ref:
    lead = x.shape[: len(x.shape) - len(shape)]
    normal = _normalized(builder, x, (*lead, math.prod(shape)), eps)
    if weight is None and bias is None:
        return normal
    scale = builder.like.new_ones(tuple(shape)) if weight is None else weight
    return builder.add(Scale(scale, bias, x.shape, sums=2), [normal], x.shape)


def group_norm(
    builder: Builder, x: Ref, groups: int, weight: Value = None, bias: Value = None, eps: float = 1e-5, *_: Any
) -> Ref:
    folded = (x.shape[0], groups, math.prod(x.shape[1:]) // groups)
    normal = _normalized(builder, x, folded, eps, squares=True)
    return _channels(builder, normal, weight, bias)


def _normalized(builder: Builder, x: Ref, folded: Shape, eps: float, *, squares: bool = False) -> Ref:
    made = Normalization(eps, folded, squares=squares)
    if folded != x.shape:
        inner = builder.add(Reshape(x.shape, folded), [x], folded)
        normal = builder.add(made, [inner], folded)
        return builder.add(Reshape(folded, x.shape), [normal], x.shape)
    return builder.add(made, [x], folded)


def max_pool2d(
    builder: Builder,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Ref:
    arguments = (_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation), ceil_mode)
    after = tuple(torch.nn.functional.max_pool2d(builder.like.new_zeros(x.shape), *arguments).shape)
    return builder.add(MaxPool(*arguments, before=x.shape, after=after, like=builder.like), [x], after)


def avg_pool2d(
    builder: Builder,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Ref:
    """Lower average pooling, to a depthwise convolution if every window has the same divisor."""
    size, channels = _pair(kernel), x.shape[-3]
    if ceil_mode or (any(_pair(padding)) and not count_include_pad):
        pooled = averaging(aten.avg_pool2d, lambda *_: math.prod(size))
        return pooled(builder, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    weight = builder.like.new_full((channels, 1, *size), 1 / (divisor or size[0] * size[1]))
    arguments = (_pair(stride or kernel), _pair(padding), (1, 1), channels)
    after = tuple(torch.nn.functional.conv2d(builder.like.new_zeros(x.shape), weight, None, *arguments).shape)
    return builder.add(Average(weight, None, *arguments, before=x.shape, after=after), [x], after)


def avg_pool1d(builder: Builder, x: Ref, kernel: Any, *args: Any, **kwargs: Any) -> Ref:
    return averaging(aten.avg_pool1d, lambda *_: _pair(kernel)[0])(builder, x, kernel, *args, **kwargs)
