"""Lower activations, which apply to each entry."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.shapes import Value, refuse_refs
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.piecewise import Clamp, LeakyRelu


def elementwise(make: Callable[..., Activation]) -> Callable[..., Ref]:
    """Make the lowering of an activation, which is built from the operator's other arguments."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        refuse_refs(builder, args, kwargs)
        activation = make(*args, **kwargs)
        if builder.checked and not holds(activation, builder.like):
            raise builder.refuse("its relaxation does not enclose it with these arguments")
        return builder.add(Elementwise(activation), [x], x.shape)

    return lower


def holds(activation: Activation, like: Tensor, intervals: int = 200, points: int = 33) -> bool:
    """Return whether an activation stays within its lines and range on random intervals; catches wrong arguments."""
    generator = torch.Generator().manual_seed(0)
    middle = 4 * torch.randn(intervals, generator=generator, dtype=torch.float64)
    width = 10 ** (4 * torch.rand(intervals, generator=generator, dtype=torch.float64) - 2.5)
    low, high = ((middle + sign * width).to(like) for sign in (-1, 1))
    (bottom, top), lines = activation.interval(low, high), activation.lines(low, high)
    x = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, points).to(like)
    value = activation(x)
    slack = 64 * torch.finfo(like.dtype).eps * (value.abs() + lines.upper_slope.abs()[:, None] * x.abs() + 1)
    under = lines.lower_slope[:, None] * x + lines.lower_offset[:, None] - slack
    over = lines.upper_slope[:, None] * x + lines.upper_offset[:, None] + slack
    wrong = (under > value) | (over < value) | (bottom[:, None] - slack > value) | (top[:, None] + slack < value)
    return not bool(wrong.any())


def prelu(builder: Builder, x: Ref, weight: Tensor) -> Ref:
    refuse_refs(builder, (weight,), {})
    slope = weight.reshape(-1, *(1,) * (len(x.shape) - 2)) if len(weight) > 1 else weight
    return builder.add(Elementwise(LeakyRelu(slope)), [x], x.shape)


def clamp(builder: Builder, x: Ref, minimum: Value = None, maximum: Value = None) -> Ref:
    if any(isinstance(end, Ref | Tensor) for end in (minimum, maximum)):
        raise builder.refuse("bounds that are tensors")
    return builder.add(Elementwise(Clamp(minimum, maximum)), [x], x.shape)
