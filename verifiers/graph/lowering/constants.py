"""Constants that a network computes from its weights at run time: float32 rounds them, and the graph does not.

Weight normalisation, learned scales that pass through an activation and position encodings are examples. The graph
holds their exact values. Their errors are bounded here and then added to those of the operators that use them.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from verifiers.core.errors import Unsupported
from verifiers.graph.affine import Affine, Reshape
from verifiers.graph.graph import Builder, Node, Ref
from verifiers.graph.lowering.arithmetic import mul
from verifiers.graph.lowering.constant_statistics import named, of_statistic
from verifiers.graph.lowering.shapes import note_rounded
from verifiers.graph.operators import Interval
from verifiers.graph.rounding import LARGEST, LIBRARY, UP, accumulated, magnitude, representable
from verifiers.runtime.oom import pass_on_memory

#: Operators that only move entries, make constants, or give integers.
MOVES = frozenset(
    "view _unsafe_view reshape flatten unflatten unsqueeze squeeze permute transpose t numpy_T expand select slice "
    "narrow flip roll index index_select repeat cat stack split split_with_sizes chunk unbind clone contiguous alias "
    "detach lift_fresh_copy to _to_copy new_zeros new_ones new_full zeros_like ones_like full_like zeros ones full eye "
    "tril triu neg abs gather broadcast_to expand_as view_as scalar_tensor _assert_tensor_metadata".split()
)
#: Operators that are linear in their constants.
LINEAR = frozenset("linear conv1d conv2d conv3d conv_transpose2d add add_ sub rsub mul matmul mm bmm cat stack".split())
#: Operators that are linear in each of two constants, sums of as many products as the first one's last axis has.
BILINEAR = frozenset("mv dot vdot linalg_vecdot matmul mm bmm".split())
#: Norms, which are roots of sums of squares, and a weight times a gain over its norm: relatively accurate.
NORMS = frozenset("norm linalg_vector_norm _weight_norm _weight_norm_interface".split())
#: Inequalities; where they are far from equality, rounding does not change them.
ORDERS = frozenset("gt lt ge le".split())


def floating(value: Any) -> list[Tensor]:
    """List the tensors of numbers that are not integers."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def fold(builder: Builder, target: Callable[..., Any], args: Any, kwargs: Any, lower: Callable[..., Any] | None) -> Any:
    """Compute an operator of constants, and bound the error of float32.

    ``lower`` is the operator's lowering, if it has one.
    """
    value = target(*args, **kwargs)
    if builder.like.dtype != torch.float64:
        return value
    given, found = floating((args, kwargs)), floating(value)
    whole = not found and any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    rounded = any(builder.error(part) is not None for part in given)
    if whole and given and (rounded or _rounds_number(args, kwargs)) and not _settled(builder, target, args, kwargs):
        raise builder.refuse("it turns constants that float32 rounds into truth values or whole numbers")
    if builder.kind in MOVES:
        if rounded:
            errors = _replaced((args, kwargs), lambda part: _or_zero(builder, part))
            for part, error in zip(found, floating(target(*errors[0], **errors[1])), strict=True):
                builder.note(part, error.abs())
        else:
            for part in found:
                note_rounded(builder, part)
        return value
    if not given and all(bool((part == part.round()).all()) for part in found):  # arange
        return value
    known = of_statistic(builder.kind, named(target, args, kwargs), lambda part: _or_zero(builder, part), found)
    if known is not None:
        for part, error in zip(found, known, strict=True):
            builder.note(part, error)
        return value
    for i, part in enumerate(found):
        bound: Tensor | None
        if builder.kind in NORMS and not rounded and _usual(builder.kind, args, kwargs):
            weighted = builder.kind == "_weight_norm"
            norms = torch.norm_except_dim(given[0], 2, *args[2:]) if weighted else found[-1]
            bound = _of_norms(part, norms, given[0])
        elif builder.kind in BILINEAR and len(given) == 2:
            bound = _of_products(builder, target, given)
        elif builder.kind == "linear":
            bound = _of_layer(builder, *given)
        else:
            bound = _bounded(builder, lower, args, kwargs, found, i)
        builder.note(part, torch.full_like(part, torch.inf) if bound is None else bound)
    return value


def _rounds_number(args: Any, kwargs: Any) -> bool:
    """Return whether float32 rounds a number beside the constants: as float32 numbers 0.1 and 0.1 are equal."""
    return any(isinstance(leaf, float) and not representable(leaf) for leaf in pytree.tree_leaves((args, kwargs)))


def _settled(builder: Builder, target: Callable[..., Any], args: Any, kwargs: Any) -> bool:
    """Return whether an inequality has one answer for all constants within their errors, and for a rounded number."""
    if builder.kind not in ORDERS:
        return False

    def answer(signs: Iterator[float]) -> Tensor:
        moved = _replaced((args, kwargs), lambda part: part + next(signs) * _error(builder, part))
        found: Tensor = target(*moved[0], **moved[1])
        return found

    every = itertools.product((-1.0, 1.0), repeat=len(floating((args, kwargs))))
    answers = [answer(iter(signs)) for signs in every]
    return all(bool((other == answers[0]).all()) for other in answers)


def _error(builder: Builder, constant: Tensor) -> Tensor:
    """Bound the error of a constant, and of a number beside it that float32 rounds."""
    return 1.001 * _or_zero(builder, constant) + 2.0**-23 * constant.abs()


def _usual(kind: str, args: Any, kwargs: Any) -> bool:
    """Return whether a norm is the sum of magnitudes or the root of a sum of squares."""
    if kind.startswith("_weight"):
        return True
    given = [*args[1:2], *(kwargs[name] for name in ("p", "ord") if name in kwargs)]
    return all(order in (None, 1, 2) for order in given)


def _of_norms(value: Tensor, norms: Tensor, constant: Tensor) -> Tensor:
    """Bound the error of norms, or of weights that are divided by them; squares must not underflow or overflow."""
    count = constant.numel() // max(1, norms.numel())
    usable = bool((norms > 2.0**-50).all()) and bool((norms < 2.0**60).all())
    return accumulated(value.abs()[None], count + 2 * LIBRARY if usable else torch.inf)[0]


def _of_products(builder: Builder, target: Callable[..., Any], given: list[Tensor]) -> Tensor:
    """Bound the error of sums of products of two constants: gamma(n) |a| |b|, and the effect of their own errors."""
    a, b = (constant.abs() for constant in given)
    more_a, more_b = (_or_zero(builder, constant) for constant in given)
    size = target(a + more_a, b + more_b)
    rounding = accumulated(size[None], a.shape[-1], tiny=float(a.shape[-1]))[0]
    return rounding + (target(more_a, b + more_b) + target(a, more_b)) * UP


def _of_layer(builder: Builder, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Bound the error of a linear layer at a constant, as the first state of a recurrent network."""
    products = _of_products(builder, torch.nn.functional.linear, [x, weight])
    if bias is None:
        return products
    size = torch.nn.functional.linear(x.abs(), weight.abs()) + bias.abs()
    lost = products + _or_zero(builder, bias)
    return lost * UP + accumulated((size + lost)[None], x.shape[-1] + 1, tiny=0.0)[0]


def _or_zero(builder: Builder, constant: Tensor) -> Tensor:
    error = builder.error(constant)
    return torch.zeros_like(constant) if error is None else error


def _replaced(tree: Any, by: Callable[[Tensor], Any]) -> Any:
    """Replace the tensors of a tree that are not integers."""
    return pytree.tree_map(
        lambda leaf: by(leaf) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree
    )


def _bounded(
    builder: Builder, lower: Callable[..., Any] | None, args: Any, kwargs: Any, found: list[Tensor], place: int
) -> Tensor | None:
    """Bound the error of a computed constant by the errors of the operators that it is lowered to; None if unknown.

    ``place`` is that of the constant among all that the operator returns.
    """
    if lower is None:
        return None
    small = Builder(builder.like, checked=False)
    small.nodes, boxes = [], []

    def source(constant: Tensor) -> Ref:
        error = _or_zero(builder, constant)
        small.nodes.append(Node(None, (), tuple(constant.shape), "", "constant"))
        boxes.append(Interval((constant - error)[None], (constant + error)[None]))
        return Ref(len(small.nodes) - 1, tuple(constant.shape))

    try:
        args, kwargs = _replaced((args, kwargs), source)
        results = lower(small, *args, **kwargs)
    except (Unsupported, ValueError, IndexError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        pass_on_memory(error)
        return None
    results = results if isinstance(results, list) else [results]
    if len(results) != len(found) or not isinstance(results[place], Ref):
        return None
    for node in small.nodes[len(boxes) :]:
        assert node.operator is not None
        inputs = [boxes[i] for i in node.inputs]
        after = node.operator.interval(*inputs)
        rounding = node.operator.rounding(inputs, after)
        if rounding is not None:
            rounding = torch.where(magnitude(after) + rounding <= LARGEST, rounding, torch.inf)
            after = Interval(after.low - rounding, after.high + rounding)
        boxes.append(after)
    (low, high), value = boxes[results[place].node], found[place]
    return (torch.maximum(high[0] - value, value - low[0]) * UP).nan_to_num(torch.inf, torch.inf, torch.inf)


def perturb(builder: Builder, before: int, args: Any, kwargs: Any, lower: Callable[..., Any], result: Any) -> Any:
    """Add the errors of the constants among an operator's arguments to the error of its nodes, from ``before`` on.

    For an operator that is linear in its constants c, |op(x, c + e) - op(x, c)| is at most op(|x|, |e|) - op(|x|, 0)
    with magnitudes throughout. For any other, the error is infinite.
    """
    if builder.exact or all(builder.error(constant) is None for constant in floating((args, kwargs))):
        return result
    if builder.kind == "div" and isinstance(args[1], Tensor):
        args, lower = (args[0], _inverse(builder, args[1])), mul
    made = builder.nodes[before:]
    operator = made[0].operator if len(made) == 1 else None
    linear = builder.kind in LINEAR or lower is mul or (builder.kind == "einsum" and len(args[1]) == 2)
    if linear and isinstance(operator, Affine):
        errors, zeros = (
            _operator(builder, _replaced((args, kwargs), by), lower)
            for by in (lambda part: _or_zero(builder, part), torch.zeros_like)
        )
        if errors is not None and zeros is not None:
            operator.perturbation = _difference(errors, zeros)
            return result
    return pytree.tree_map(lambda leaf: _unbounded(builder, leaf) if isinstance(leaf, Ref) else leaf, result)


def _inverse(builder: Builder, constant: Tensor) -> Tensor:
    """Compute the reciprocals of a constant, and record their error."""
    error, size = _or_zero(builder, constant), constant.abs()
    inverse = 1 / constant
    builder.note(inverse, torch.where(size > error, error / (size * (size - error)) * UP, torch.inf))
    return inverse


def _operator(builder: Builder, given: Any, lower: Callable[..., Any]) -> Affine | None:
    """Lower an operator with other constants; None if that is not one affine operator."""
    small = Builder(builder.like, checked=False)
    start = len(small.nodes)
    lower(small, *given[0], **given[1])
    made = [node.operator for node in small.nodes[start:]]
    return made[0] if len(made) == 1 and isinstance(made[0], Affine) else None


def _difference(errors: Affine, zeros: Affine) -> Callable[..., Tensor]:
    def perturbation(*sizes: Tensor) -> Tensor:
        moved, still = errors.forward(*sizes), zeros.forward(*sizes)
        # The first term's own rounding is at most half of it; the last one is that of the difference in float64.
        return 1.5 * (moved - still).abs() + 2.0**-50 * still.abs()

    return perturbation


def _unbounded(builder: Builder, ref: Ref) -> Ref:
    """Append a node that changes nothing and has no bound of its error."""
    made = Reshape(ref.shape, ref.shape)
    made.perturbation = lambda size: torch.full_like(size, torch.inf)
    return builder.add(made, [ref], ref.shape)
