"""Lower operators that keep, pick, copy, add and average entries, or depend on the shape alone."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import Function, General, Reshape
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.interpolation import Interpolation
from verifiers.graph.rounding import nearest, representable
from verifiers.graph.rows import Shape, shape_size

#: A Ref, a Tensor or a number.
Value = Any


def general(
    builder: Builder, function: Function, inputs: Sequence[Ref], absolute: Function | None = None, *, steps: int
) -> Ref:
    """Append an affine function of the inputs, transposed by automatic differentiation.

    A term of an entry passes through ``steps`` roundings in float32; 0 means that entries are only moved.
    """
    shapes = [ref.shape for ref in inputs]
    after = tuple(function(*(builder.like.new_zeros(shape) for shape in shapes)).shape)
    return builder.add(General(function, shapes, after, builder.like, absolute, steps), inputs, after)


def picking(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """Make the lowering of an operator that only picks and copies entries of its first argument."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        refuse_refs(builder, args, kwargs)
        return general(builder, lambda value: target(value, *args, **kwargs), [x], steps=0)

    return lower


def averaging(target: Callable[..., Tensor], terms: Callable[[Shape, Shape], int]) -> Callable[..., Ref]:
    """Make the lowering of an operator that adds or averages entries of its first argument.

    ``terms`` gives the most entries that are added, from the shapes before and after. In float32, n - 1 sums are
    followed by a quotient, or by a product with a rounded reciprocal.
    """

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        refuse_refs(builder, args, kwargs)
        after = tuple(target(builder.like.new_zeros(x.shape), *args, **kwargs).shape)
        return general(builder, lambda value: target(value, *args, **kwargs), [x], steps=terms(x.shape, after) + 1)

    return lower


def reduced(before: Shape, after: Shape) -> int:
    """Count the entries that are reduced to one."""
    return shape_size(before) // max(1, shape_size(after))


def windows(before: Shape, after: Shape) -> int:
    """Count the entries of the largest window of an adaptive pooling."""
    sizes = (-(-large // small) + (large % small > 0) for large, small in zip(before, after, strict=True))
    return math.prod(sizes)


def interpolating(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """Make the lowering of an interpolation between neighbours in a map."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        refuse_refs(builder, args, kwargs)
        after = tuple(target(builder.like.new_zeros(x.shape), *args, **kwargs).shape)
        made = Interpolation(lambda value: target(value, *args, **kwargs), [x.shape], after, builder.like, steps=8)
        return builder.add(made, [x], after)

    return lower


def refuse_refs(builder: Builder, args: Any, kwargs: Any) -> None:
    if any(isinstance(leaf, Ref) for leaf in torch.utils._pytree.tree_leaves((args, kwargs))):
        raise builder.refuse("an argument that must be constant depends on the image")


def identity(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return x


def converted(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    """Lower a change of device; a change of dtype would round and is rejected."""
    dtypes = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.dtype)]
    if any(dtype != builder.like.dtype for dtype in dtypes):
        raise builder.refuse(f"conversion to {dtypes[0]} inside the network")
    return x


def dropout(builder: Builder, x: Ref, p: float, train: bool) -> Ref:
    if train and p > 0:
        raise builder.refuse("dropout that is active in eval mode")
    return x


def axes_of(axes: Sequence[int] | int | None, rank: int) -> list[int]:
    """Count the axes of a reduction from the front; all if none are given."""
    given = [axes] if isinstance(axes, int) else list(axes if axes is not None else ())
    return sorted({axis % rank for axis in given} or set(range(rank)))


def same_shape(builder: Builder, x: Value, other: Value) -> Value:
    """Lower ``expand_as`` and its like, which use only the shape of their second argument."""
    shape = tuple(other.shape)
    if not isinstance(x, Ref):
        return x.expand(shape)
    return x if x.shape == shape else general(builder, lambda value: value.expand(shape), [x], steps=0)


def reshaped_as(builder: Builder, x: Value, other: Value) -> Value:
    """Lower ``view_as`` and ``reshape_as``."""
    shape = tuple(other.shape)
    return builder.add(Reshape(x.shape, shape), [x], shape) if isinstance(x, Ref) else x.reshape(shape)


def constant(target: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make the lowering of an operator that uses only the shape and the dtype of its first argument."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Tensor:
        refuse_refs(builder, args, kwargs)
        value = target(builder.like.new_zeros(x.shape), *args, **kwargs)
        note_rounded(builder, value)
        return value

    return lower


def note_rounded(builder: Builder, constant: Tensor) -> None:
    """Record the distance of a constant from float32."""
    if builder.like.dtype == torch.float64 and constant.is_floating_point() and not representable(constant):
        builder.note(constant, (nearest(constant) - constant).abs())


def reshape(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """Make the lowering of an operator that keeps the order of the entries."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        after = tuple(target(builder.like.new_zeros(x.shape), *args, **kwargs).shape)
        return builder.add(Reshape(x.shape, after), [x], after) if after != x.shape else x

    return lower


def split(builder: Builder, x: Ref, size: int | Sequence[int], dim: int = 0) -> list[Ref]:
    parts = torch.split(torch.arange(x.shape[dim]), size if isinstance(size, int) else list(size))
    ends = [0, *accumulate(len(part) for part in parts)]
    return [_slice(builder, x, dim, start, end) for start, end in pairwise(ends)]


def chunk(builder: Builder, x: Ref, chunks: int, dim: int = 0) -> list[Ref]:
    return split(builder, x, -(-x.shape[dim] // chunks), dim)


def unbind(builder: Builder, x: Ref, dim: int = 0) -> list[Ref]:
    return [picking(torch.ops.aten.select)(builder, x, dim, i) for i in range(x.shape[dim])]


def _slice(builder: Builder, x: Ref, dim: int, start: int, end: int) -> Ref:
    return general(builder, lambda value: value.narrow(dim, start, end - start), [x], steps=0)


def joined(join: Callable[..., Tensor]) -> Callable[..., Ref]:
    """Make the lowering of cat or stack; constant parts, like class tokens, become constants of the function."""

    def lower(builder: Builder, parts: Sequence[Value], dim: int = 0) -> Ref:
        inputs = [part for part in parts if isinstance(part, Ref)]

        def function(*values: Tensor) -> Tensor:
            rest = iter(values)
            return join([next(rest) if isinstance(part, Ref) else part for part in parts], dim)

        return general(builder, function, inputs, steps=0)

    return lower


def pad(
    builder: Builder, x: Ref, sides: Sequence[int], mode: str = "constant", value: int | float | None = None
) -> Ref:
    steps = 0 if value is None or representable(value) else 1
    return general(builder, lambda image: torch.nn.functional.pad(image, list(sides), mode, value), [x], steps=steps)
