"""Lower sums, products, powers, softmax and its log, and attention."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import Scale, Sum
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.shapes import Value, axes_of, general
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.convex import Reciprocal, Rsqrt, Sqrt, Square
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.log_sum_exp import LogSumExp
from verifiers.graph.relaxations.powers import OddPower, Power
from verifiers.graph.relaxations.products import Product
from verifiers.graph.relaxations.softmax import Softmax
from verifiers.graph.rounding import LARGEST, NORMAL


def check_number(builder: Builder, value: Any) -> None:
    """Refuse a factor or divisor that float32 does not hold to full precision: it is rounded to inf, 0 or a subnormal.

    Raises:
        Unsupported: it is such a number.
    """
    if isinstance(value, int | float) and value and not NORMAL <= abs(value) <= LARGEST:
        raise builder.refuse(f"with the number {value:.3g}, which float32 does not hold")


def add(builder: Builder, left: Value, right: Value, *, alpha: int | float = 1) -> Ref:
    return _plus(builder, left, 1, right, alpha)


def sub(builder: Builder, left: Value, right: Value, *, alpha: int | float = 1) -> Ref:
    return _plus(builder, left, 1, right, -alpha)


def rsub(builder: Builder, left: Value, right: Value, alpha: int | float = 1) -> Ref:
    return _plus(builder, left, -alpha, right, 1)


def _plus(builder: Builder, left: Value, a: int | float, right: Value, b: int | float) -> Ref:
    """Lower a left + b right."""
    for factor in (a, b):
        check_number(builder, factor)
    if not isinstance(left, Ref):
        left, a, right, b = right, b, left, a
    if isinstance(right, Ref):
        if left.shape == right.shape and {abs(a), abs(b)} == {1}:
            return builder.add(Sum([round(a), round(b)]), [left, right], left.shape)
        size = lambda x, y: abs(a) * x + abs(b) * y  # noqa: E731
        return general(builder, lambda x, y: a * x + b * y, [left, right], size, steps=3)
    shift = b * torch.as_tensor(right, dtype=builder.like.dtype, device=builder.like.device)
    if torch.broadcast_shapes(shift.shape, left.shape) == left.shape:
        made = Scale(builder.like.new_tensor(float(a)), shift, left.shape, shift_steps=0 if abs(b) == 1 else 2)
        return builder.add(made, [left], left.shape)
    return general(builder, lambda x: a * x + shift, [left], lambda x: abs(a) * x + 0 * shift, steps=3)


def mul(builder: Builder, left: Value, right: Value) -> Ref:
    if not isinstance(left, Ref):
        left, right = right, left
    check_number(builder, right)
    if not isinstance(right, Ref):
        scale = torch.as_tensor(right, dtype=builder.like.dtype, device=builder.like.device)
        if torch.broadcast_shapes(scale.shape, left.shape) == left.shape:
            return builder.add(Scale(scale, None, left.shape), [left], left.shape)
        return general(builder, lambda x: x * scale, [left], lambda x: x * scale.abs(), steps=3)
    if left == right:
        return builder.add(Elementwise(Square()), [left], left.shape)
    after = tuple(torch.broadcast_shapes(left.shape, right.shape))
    return builder.add(Product(torch.mul, left.shape, right.shape, after), [left, right], after)


def div(builder: Builder, left: Value, right: Value) -> Ref:
    if isinstance(right, Ref):
        return mul(builder, left, builder.add(Elementwise(Reciprocal()), [right], right.shape))
    check_number(builder, right)
    return mul(builder, left, 1 / torch.as_tensor(right, dtype=builder.like.dtype, device=builder.like.device))


def power(builder: Builder, x: Ref, exponent: Value) -> Ref:
    if isinstance(exponent, Tensor) and exponent.numel() == 1:
        exponent = float(exponent)
    if not isinstance(x, Ref) or not isinstance(exponent, int | float) or exponent == 0:
        said = "that depends on the image" if isinstance(exponent, Ref | Tensor) else str(exponent)
        raise builder.refuse(f"exponent {said}: only constant ones other than 0 have bounds")
    if exponent == 1:
        return x
    known: dict[float, Callable[[], Activation]] = {2: Square, 0.5: Sqrt, -0.5: Rsqrt, -1: Reciprocal}
    if exponent in known:
        return builder.add(Elementwise(known[exponent]()), [x], x.shape)
    odd = exponent > 0 and exponent % 2 == 1
    return builder.add(Elementwise(OddPower(int(exponent)) if odd else Power(float(exponent))), [x], x.shape)


def matmul(builder: Builder, left: Value, right: Value, *, scale: float | None = None) -> Ref:
    if isinstance(left, Ref) and isinstance(right, Ref):
        if left == right or min(len(left.shape), len(right.shape)) < 2:
            raise builder.refuse("a product of a value with itself, or of vectors")
        after = tuple(torch.matmul(builder.like.new_zeros(left.shape), builder.like.new_zeros(right.shape)).shape)
        return builder.add(Product(torch.matmul, left.shape, right.shape, after, scale), [left, right], after)
    if isinstance(left, Ref):
        return general(builder, lambda x: x @ right, [left], lambda x: x @ right.abs(), steps=left.shape[-1])
    return general(builder, lambda x: left @ x, [right], lambda x: left.abs() @ x, steps=left.shape[-1])


def addmm(builder: Builder, bias: Value, left: Value, right: Value) -> Ref:
    return _plus(builder, matmul(builder, left, right), 1, bias, 1)


def attention(
    builder: Builder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: int | float | None = None,
    enable_gqa: bool = False,
) -> Ref:
    """Lower softmax(q k^T / sqrt(d) + mask) v."""
    if is_causal or enable_gqa or dropout_p or isinstance(mask, Ref) or (mask is not None and mask.dtype == torch.bool):
        raise builder.refuse("only attention without causal, boolean or grouped masks and without dropout has bounds")
    if mask is not None and not bool(torch.isfinite(mask).all()):
        raise builder.refuse("a mask with infinite entries")
    if not all(isinstance(part, Ref) for part in (query, key, value)):
        raise builder.refuse("attention to constants")
    keys = general(builder, lambda x: x.mT, [key], steps=0)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = mul(builder, matmul(builder, query, keys, scale=abs(factor)), factor)
    scores = scores if mask is None else add(builder, scores, mask)
    weights = builder.add(Softmax(-1, scores.shape, fused=True), [scores], scores.shape)
    return matmul(builder, weights, value, scale=1.0)


def softmax(builder: Builder, x: Ref, dim: int, *_: Any) -> Ref:
    return builder.add(Softmax(dim if dim < 0 else dim - len(x.shape), x.shape), [x], x.shape)


def log_softmax(builder: Builder, x: Ref, dim: int, *_: Any) -> Ref:
    """Lower x - log sum exp(x), whose rounding covers every order in which float32 takes the three parts."""
    return sub(builder, x, log_sum_exp(builder, x, dim, keepdim=True))


def log_sum_exp(builder: Builder, x: Ref, dims: int | Sequence[int], keepdim: bool = False) -> Ref:
    """Lower the log of the sum of exp along axes, which are put side by side at the end."""
    axes = axes_of(dims, len(x.shape))
    kept = [axis for axis in range(len(x.shape)) if axis not in axes]
    after = tuple(1 if axis in axes else x.shape[axis] for axis in range(len(x.shape)) if keepdim or axis in kept)
    if len(axes) == 1:
        axis = axes[0] - len(x.shape)
    else:
        sides = (*(x.shape[axis] for axis in kept), math.prod(x.shape[axis] for axis in axes))
        x, axis = general(builder, lambda value: value.permute(*kept, *axes).reshape(sides), [x], steps=0), -1
    operator = LogSumExp(axis, x.shape)
    found = builder.add(operator, [x], operator.after)
    return found if found.shape == after else general(builder, lambda value: value.reshape(after), [found], steps=0)
