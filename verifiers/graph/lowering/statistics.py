"""Lower norms, variances and the normalisations that are made of them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import General
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.arithmetic import add, mul
from verifiers.graph.lowering.layers import fixed_batch_norm, group_norm
from verifiers.graph.lowering.selection import amax
from verifiers.graph.lowering.shapes import Value, axes_of, general
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.convex import Rsqrt, Square
from verifiers.graph.relaxations.normalization import of_moments
from verifiers.graph.relaxations.piecewise import Abs
from verifiers.graph.relaxations.powers import Root
from verifiers.graph.rounding import LARGEST, UP, accumulated
from verifiers.graph.rows import Shape, shape_size

aten = torch.ops.aten


def _summed(builder: Builder, x: Ref, axes: Sequence[int], *, keepdim: bool) -> Ref:
    count = math.prod(x.shape[axis] for axis in axes)
    return general(builder, lambda value: value.sum(list(axes), keepdim), [x], steps=count)


def vector_norm(
    builder: Builder, x: Ref, order: Value = 2, axes: Any = None, keepdim: bool = False, dtype: Value = None
) -> Ref:
    """Lower the 1-, 2- and maximum norm along axes."""
    if dtype is not None and dtype != builder.like.dtype:
        raise builder.refuse(f"a norm in {dtype}")
    chosen, order = axes_of(axes, len(x.shape)), 2 if order is None else order
    if order == 2:
        squares = builder.add(Elementwise(Square()), [x], x.shape)
        total = _summed(builder, squares, chosen, keepdim=keepdim)
        return builder.add(Elementwise(Root()), [total], total.shape)
    sizes = builder.add(Elementwise(Abs()), [x], x.shape)
    if order == 1:
        return _summed(builder, sizes, chosen, keepdim=keepdim)
    if order == math.inf:
        return amax(1)(builder, sizes, chosen, keepdim)
    raise builder.refuse(f"the norm of order {order}: only 1, 2 and the maximum have bounds")


class Variance(General):
    """The sum of squared deviations over n - correction, of inputs d^2 and x; x only enters the rounding.

    Float32 may find the variance in two passes or by updates (Welford, Chan); ``of_moments`` bounds the error of both.
    """

    def __init__(self, axes: list[int], correction: int | float, shape: Shape, like: Tensor, *, keepdim: bool) -> None:
        self.axes, self.count = axes, math.prod(shape[axis] for axis in axes)
        self.share = 1 / (self.count - correction)

        def function(squares: Tensor, x: Tensor) -> Tensor:
            return (squares.sum(axes, keepdim) + 0 * x.sum(axes, keepdim)) * self.share

        after = tuple(function(like.new_zeros(shape), like.new_zeros(shape)).shape)
        super().__init__(function, [shape, shape], after, like, steps=self.count + 4)
        self.keepdim = keepdim

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        n, share = self.count, self.count * self.share
        over = [axis + 1 for axis in self.axes]
        square, size = (value.mean(over, self.keepdim) for value in (sizes[1].square(), sizes[1]))
        variance = sizes[0].mean(over, self.keepdim)
        _, by_updates, lost = of_moments(n, size, square)
        lost = by_updates * (square * variance).sqrt() + lost
        usual = accumulated(variance * share, n + 12, tiny=n, largest=n)
        error = (usual + lost * share * 2 * UP).nan_to_num(torch.inf, torch.inf)
        return torch.where(n * size <= LARGEST, error, torch.inf)


def variance(
    builder: Builder, x: Ref, axes: Any = None, unbiased: Value = None, keepdim: bool = False, *, correction: Value = 1
) -> Ref:
    """Lower the variance along axes. The deviations are exact: their rounding is that of the variance."""
    if isinstance(axes, bool):  # var(x, unbiased)
        axes, unbiased = None, axes
    if unbiased is not None and not isinstance(unbiased, bool):  # var.correction(x, axes, *, correction)
        raise builder.refuse(f"a correction of {unbiased}")
    less = (1 if correction is None else correction) if unbiased is None else int(unbiased)
    chosen = axes_of(axes, len(x.shape))
    if math.prod(x.shape[axis] for axis in chosen) <= less:
        raise builder.refuse("the variance of too few numbers")
    deviation = general(
        builder,
        lambda value: value - value.mean(chosen, keepdim=True),
        [x],
        lambda value: value + value.mean(chosen, keepdim=True),
        steps=0,
    )
    squares = builder.add(Elementwise(Square()), [deviation], x.shape)
    made = Variance(chosen, less, x.shape, builder.like, keepdim=keepdim)
    after = tuple(builder.like.new_zeros(x.shape).sum(chosen, keepdim).shape)
    return builder.add(made, [squares, x], after)


def deviation(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    """Lower the standard deviation along axes."""
    found = variance(builder, x, *args, **kwargs)
    return builder.add(Elementwise(Root()), [found], found.shape)


def with_mean(lower: Any) -> Any:
    """Make the lowering of ``var_mean`` and ``std_mean``."""

    def both(builder: Builder, x: Ref, axes: Any = None, *args: Any, **kwargs: Any) -> list[Ref]:
        keepdim = bool(kwargs.get("keepdim", args[1] if len(args) > 1 else False))
        chosen = axes_of(None if isinstance(axes, bool) else axes, len(x.shape))
        count = shape_size(tuple(x.shape[axis] for axis in chosen))
        mean = general(builder, lambda value: value.mean(chosen, keepdim), [x], steps=count + 1)
        return [lower(builder, x, axes, *args, **kwargs), mean]

    return both


def instance_norm(
    builder: Builder,
    x: Ref,
    weight: Value,
    bias: Value,
    mean: Value,
    var: Value,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Ref:
    """Lower instance normalisation: group normalisation with one channel in each group, or stored statistics."""
    if not use_input_stats:
        return fixed_batch_norm(builder, x, weight, bias, mean, var, False, momentum, eps)
    return group_norm(builder, x, x.shape[1], weight, bias, eps)


def rms_norm(builder: Builder, x: Ref, shape: Sequence[int], weight: Value = None, eps: Value = None) -> Ref:
    """Lower x / sqrt(mean of x^2 + eps), times a weight."""
    axes, less = list(range(-len(shape), 0)), torch.finfo(torch.float32).eps if eps is None else eps
    squares = builder.add(Elementwise(Square()), [x], x.shape)
    count = math.prod(shape)
    mean = general(builder, lambda value: value.mean(axes, keepdim=True), [squares], steps=count + 1)
    shifted = add(builder, mean, less)
    normal = mul(builder, x, builder.add(Elementwise(Rsqrt()), [shifted], shifted.shape))
    return normal if weight is None else mul(builder, normal, weight)
