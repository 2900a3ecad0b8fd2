"""Bound the error of float32 in statistics of constants: standardised weights, running sums, extremes.

Weight standardisation (Qiao et al., arXiv 1903.10520) is an example: the network standardises its weights each time it
runs. A statistic is computed from float32 values, which are at most their own error away from the exact constants.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.normalization import Normalization
from verifiers.graph.rounding import LARGEST, TINY, UP, accumulated, gamma, magnitude

#: Batch normalisation, which takes its statistics from a constant in training mode.
BATCH_NORMS = frozenset("batch_norm native_batch_norm _native_batch_norm_legit".split())
#: Operators that return some of their entries.
EXTREMES = frozenset("amax amin max min maximum minimum".split())
#: Covers the rounding of float64 where two nearly equal numbers are subtracted, relative to them.
FLOAT64 = 2.0**-48

#: Bounds the error of a constant; 0 for float32 numbers.
Errors = Callable[[Tensor], Tensor]


def named(target: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Bind an operator's arguments to the names in its schema, with its defaults."""
    arguments = target._schema.arguments if hasattr(target, "_schema") else ()
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    return {**given, **{argument.name: value for argument, value in zip(arguments, args, strict=False)}, **kwargs}


def of_statistic(kind: str, given: Mapping[str, Any], errors: Errors, found: list[Tensor]) -> list[Tensor] | None:
    """Bound the errors of a statistic's results; None if the operator is none of those here.

    Args:
        kind: the operator's name.
        given: its arguments by name.
        errors: bounds the error of a constant.
        found: its results in float64.
    """
    if kind in BATCH_NORMS and given.get("training"):
        rest = [torch.full_like(part, torch.inf) for part in found[1:]]
        return [_of_batch_norm(given, errors, found[0]), *rest]
    if kind == "cumsum":
        constant = given["self"]
        error, axis = errors(constant), given["dim"]
        size, terms = (constant.abs() + error).cumsum(axis), constant.shape[axis] if constant.dim() else 1
        return [accumulated(size[None], terms, tiny=float(terms))[0] + error.cumsum(axis) * UP]
    if kind in EXTREMES:  # they move by no more than the entry that moves most
        constants = [value for value in given.values() if isinstance(value, Tensor) and value.is_floating_point()]
        most = max((float(errors(constant).max()) for constant in constants), default=0.0)
        return [torch.full_like(part, most) for part in found]
    return None


def _box(constant: Tensor, error: Tensor, arranged: Callable[[Tensor], Tensor]) -> Interval:
    return Interval(arranged(constant - error)[None], arranged(constant + error)[None])


def _of_batch_norm(given: Mapping[str, Any], errors: Errors, value: Tensor) -> Tensor:
    """Bound the error of batch normalisation by a constant's own statistics: g z + b with z from ``Normalization``.

    z of the values that a machine has is in its range over their box, and off by ``Normalization.rounding``, whatever
    is merged into it. The product with g and the sum with b add 4 roundings of |g z| + |b|.
    """
    constant = given["input"]
    channels = constant.shape[1]

    def columns(values: Tensor) -> Tensor:
        return values.transpose(0, 1).reshape(channels, -1)

    box = _box(constant, errors(constant), columns)
    made = Normalization(float(given["eps"]), tuple(box.low.shape[1:]), squares=True)
    span = made.interval(box)
    rounding = made.rounding([box], span)
    span = Interval(span.low - rounding, span.high + rounding)
    (gain, more), (shift, moved) = (
        _of_channels(given.get(name), errors, constant, fill) for name, fill in (("weight", 1.0), ("bias", 0.0))
    )
    ends = torch.stack([end * (gain + sign * more) for end in span for sign in (-1, 1)])
    low, high = ends.amin(0) + shift - moved, ends.amax(0) + shift + moved
    size = (gain.abs() + more) * magnitude(span) + shift.abs() + moved
    exact = columns(value)
    error = torch.maximum(high - exact, exact - low) * UP + (gamma(4) + FLOAT64) * size + TINY
    whole = torch.where(size <= LARGEST, error, torch.inf).nan_to_num(torch.inf, torch.inf, torch.inf)[0]
    batch, _, *rest = constant.shape
    return whole.reshape(channels, batch, *rest).transpose(0, 1)


def _of_channels(values: Tensor | None, errors: Errors, like: Tensor, fill: float) -> tuple[Tensor, Tensor]:
    """Return one value per channel and its error, as columns."""
    if values is None:
        return like.new_full((1, 1), fill), like.new_zeros((1, 1))
    return values.reshape(-1, 1), errors(values).reshape(-1, 1)
