"""Lower maxima, minima, comparisons with constants and choices between two values."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import Affine, Scale, Sum
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.activations import clamp
from verifiers.graph.lowering.layers import max_pool2d
from verifiers.graph.lowering.shapes import Value, axes_of, general, reshape
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.relaxations.selection import Select, Step

aten = torch.ops.aten


def _related(builder: Builder, made: Affine, inputs: Sequence[Ref], shape: Sequence[int]) -> Ref:
    """Append an operator that no machine computes: it has no rounding."""
    made.computed = False
    return builder.add(made, inputs, shape)


def _wide(builder: Builder, x: Ref, shape: Sequence[int]) -> Ref:
    """Broadcast a value to a shape."""
    return x if x.shape == tuple(shape) else general(builder, lambda value: value.expand(*shape), [x], steps=0)


def as_value(builder: Builder, constant: Value, like: Ref) -> Ref:
    """Turn a constant into a value of the graph: 0 x + constant; a value is returned unchanged."""
    if isinstance(constant, Ref):
        return constant
    shift = torch.as_tensor(constant, dtype=builder.like.dtype, device=builder.like.device)
    if not bool(shift.isfinite().all()):
        raise builder.refuse("a constant that is not finite")
    shape = tuple(torch.broadcast_shapes(shift.shape, like.shape))
    zero = builder.like.new_zeros(())
    made = Scale(zero, shift.expand(shape), shape)
    return builder.add(made, [_wide(builder, like, shape)], shape)


def maximum(builder: Builder, left: Value, right: Value) -> Ref:
    """Lower max(x, y) = y + relu(x - y), of which only the maximum itself is computed."""
    return _extreme(builder, left, right, 1)


def minimum(builder: Builder, left: Value, right: Value) -> Ref:
    """Lower min(x, y) = y - relu(y - x)."""
    return _extreme(builder, left, right, -1)


def _extreme(builder: Builder, left: Value, right: Value, sign: int) -> Ref:
    given = left if isinstance(left, Ref) else right
    x, y = as_value(builder, left, given), as_value(builder, right, given)
    shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
    x, y = _wide(builder, x, shape), _wide(builder, y, shape)
    if x == y:
        return x
    gap = _related(builder, Sum([sign, -sign]), [x, y], shape)
    more = builder.add(Elementwise(Relu()), [gap], shape)
    return _related(builder, Sum([1, sign]), [y, more], shape)


def largest(sign: int) -> Callable[..., Any]:
    """Make the lowering of ``max`` or ``min``: of two values, or of one along an axis or all."""

    def lower(builder: Builder, x: Value, other: Value = None, keepdim: bool = False) -> Any:
        if other is None:
            return amax(sign)(builder, x, list(range(len(x.shape))))
        if isinstance(other, int):
            return [amax(sign)(builder, x, [other], keepdim)]
        return _extreme(builder, x, other, sign)

    return lower


def amax(sign: int) -> Callable[..., Ref]:
    """Make the lowering of the maximum or the minimum along axes, as max-pooling over a row of entries."""

    def lower(builder: Builder, x: Ref, axes: Sequence[int] | int = (), keepdim: bool = False) -> Ref:
        rank = len(x.shape)
        chosen = axes_of(axes, rank)
        rest = [axis for axis in range(rank) if axis not in chosen]
        count = int(torch.Size(x.shape[axis] for axis in chosen).numel())
        moved = general(
            builder,
            lambda value: sign * value.permute(*rest, *chosen).reshape(1, -1, 1, count),
            [x],
            lambda value: value.permute(*rest, *chosen).reshape(1, -1, 1, count),
            steps=0,
        )
        pooled = max_pool2d(builder, moved, (1, count), (1, count))
        kept = [1 if axis in chosen else size for axis, size in enumerate(x.shape)]
        after = kept if keepdim else [x.shape[axis] for axis in rest]
        return general(
            builder,
            lambda value: sign * value.reshape(after),
            [pooled],
            lambda value: value.reshape(after),
            steps=0,
        )

    return lower


def max_pool1d(
    builder: Builder,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Ref:
    """Lower max-pooling of signals, as that of maps of height 1."""
    size, sides, gap = _one(kernel), _one(padding), _one(dilation)
    step = _one(stride) if stride not in ((), [], None) else size
    flat = reshape(lambda value: value.unsqueeze(-2))(builder, x)
    pooled = max_pool2d(builder, flat, (1, size), (1, step), (0, sides), (1, gap), ceil_mode)
    return reshape(lambda value: value.squeeze(-2))(builder, pooled)


def _one(value: Any) -> int:
    return int(value if isinstance(value, int) else value[0])


def adaptive_max_pool(axes: int) -> Callable[..., list[Ref]]:
    """Make the lowering of adaptive max-pooling over the last one, two or three axes; its indices are not used."""

    def lower(builder: Builder, x: Ref, size: Any) -> list[Ref]:
        sizes = [size] * axes if isinstance(size, int) else list(size)
        value = x
        for axis, count in zip(range(-axes, 0), sizes, strict=True):
            value = _pooled(builder, value, axis, x.shape[axis] if count is None else count)
        return [value]

    return lower


def _pooled(builder: Builder, x: Ref, axis: int, count: int) -> Ref:
    """Take the maxima of ``count`` parts of an axis, which overlap where it cannot be divided."""
    length, parts = x.shape[axis], []
    for i in range(count):
        start, end = i * length // count, -(-(i + 1) * length // count)
        part = general(builder, lambda v, s=start, e=end: v.narrow(axis, s, e - s), [x], steps=0)
        parts.append(amax(1)(builder, part, [axis], keepdim=True))
    return general(builder, lambda *values: torch.cat(values, axis), parts, steps=0) if count > 1 else parts[0]


def compared(sign: int, *, strict: bool) -> Callable[..., Ref]:
    """Make the lowering of a comparison: 1 where sign (x - y) > 0 (>= 0 unless strict), else 0."""

    def lower(builder: Builder, left: Value, right: Value) -> Ref:
        if isinstance(left, Ref) and isinstance(right, int | float):
            return _step(builder, left, float(right), sign, strict)
        if isinstance(left, Ref) and isinstance(right, Tensor) and right.numel() == 1:
            found = _step(builder, left, float(right), sign, strict)
            return _wide(builder, found, tuple(torch.broadcast_shapes(left.shape, right.shape)))
        given = left if isinstance(left, Ref) else right
        x, y = as_value(builder, left, given), as_value(builder, right, given)
        shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
        gap = _related(builder, Sum([1, -1]), [_wide(builder, x, shape), _wide(builder, y, shape)], shape)
        return _step(builder, gap, 0.0, sign, strict)

    return lower


def _step(builder: Builder, x: Ref, threshold: int | float, sign: int, strict: bool) -> Ref:
    """x < t is not x >= t, and x <= t is not x > t."""
    step = Step(threshold, strict=strict if sign > 0 else not strict)
    found = builder.add(Elementwise(step), [x], x.shape)
    return found if sign > 0 else negated(builder, found)


def negated(builder: Builder, mask: Ref) -> Ref:
    """Lower the logical not, 1 - mask."""
    one = builder.like.new_ones(())
    return _related(builder, Scale(-one, one.expand(mask.shape), mask.shape), [mask], mask.shape)


def where(builder: Builder, mask: Value, left: Value, right: Value) -> Ref:
    """Lower a choice; a constant mask picks entries."""
    given = next(each for each in (left, right, mask) if isinstance(each, Ref))
    if not isinstance(mask, Ref):
        keep = mask.to(builder.like.dtype)
        a, b = as_value(builder, left, given), as_value(builder, right, given)
        return _blended(builder, keep, a, b)
    a, b = as_value(builder, left, given), as_value(builder, right, given)
    after = tuple(torch.broadcast_shapes(mask.shape, a.shape, b.shape))
    return builder.add(Select([mask.shape, a.shape, b.shape], after), [mask, a, b], after)


def _blended(builder: Builder, keep: Tensor, a: Ref, b: Ref) -> Ref:
    """Pick the entries of one value where a constant is 1, and of the other where it is 0."""
    return general(builder, lambda x, y: keep * x + (1 - keep) * y, [a, b], steps=0)


def masked_fill(builder: Builder, x: Value, mask: Value, value: Value) -> Ref:
    return where(builder, mask, value, x)


def clamped(builder: Builder, x: Ref, minimum_: Value = None, maximum_: Value = None) -> Ref:
    """Lower a clamp; ends that are no numbers are taken one by one."""
    ends = [float(end) if isinstance(end, Tensor) and end.numel() == 1 else end for end in (minimum_, maximum_)]
    if not any(isinstance(end, Ref | Tensor) for end in ends):
        return clamp(builder, x, *ends)
    least, most = ends
    x = x if least is None else maximum(builder, x, least)
    return x if most is None else minimum(builder, x, most)
