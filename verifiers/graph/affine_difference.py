"""Differences of two affine operators of one architecture.

For s' = A_s s + b_s and t' = A_t t + b_t the difference is d' = A_s d + (A_s - A_t) t + (b_s - b_t) with d = s - t.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from verifiers.graph.affine import Affine, Convolution, Dense, General, Reshape, Scale, Sum
from verifiers.graph.operators import Interval, Operator, Paired, Pushed
from verifiers.graph.rounding import ENGINE, LARGEST
from verifiers.graph.rows import Rows, Shape


class Difference(Paired, Affine):
    """d = s - t, which no machine computes. The first two inputs are t and s; others only bound it better."""

    computed = False

    def forward(self, *values: Tensor) -> Tensor:
        return values[1] - values[0]

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return half_widths[0] + half_widths[1]

    def interval(self, *boxes: Interval) -> Interval:
        t, s = boxes[:2]
        return Interval(s.low - t.high, s.high - t.low)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        return Pushed([rows.take(-rows.values), rows, *[None] * (self.inputs - 2)])

    @property
    def inputs(self) -> int:
        """The number of inputs."""
        return 2


class AffineDifference(Difference):
    """d' = s' - t' behind two affine operators, bounded by their inputs t, s and d = s - t.

    In float32 each network rounds by itself, so d' is off by the errors of both operators.

    Args:
        ours, theirs: the operators that give s' and t'.
        given: for each of their inputs, whether there is a difference.
        shapes: of their inputs.
        like: a tensor of the dtype and device.
        rounded: both operators round.
    """

    def __init__(
        self,
        ours: Affine,
        theirs: Affine,
        given: Sequence[bool],
        shapes: Sequence[Shape],
        like: Tensor,
        *,
        rounded: bool,
    ) -> None:
        self.ours, self.theirs, self.given, self.rounded = ours, theirs, given, rounded
        self.change = change_of(ours, theirs, like)
        self.linear_part = linear_part(ours, shapes, given, like) if any(given) else None

    @property
    def inputs(self) -> int:
        return 2 + 2 * len(self.given) + sum(self.given)

    @property
    def follows_image(self) -> bool:
        """True if the inputs have no difference, so that d' is one affine function of them."""
        return self.linear_part is None

    def interval(self, *boxes: Interval) -> Interval:
        count = len(self.given)
        t, s, d = boxes[2 : 2 + count], boxes[2 + count : 2 + 2 * count], boxes[2 + 2 * count :]
        low = high = torch.zeros_like(boxes[0].low)
        for part, inputs in ((self.change, t), (self.linear_part, d)):
            if part is not None:
                box = part.interval(*inputs)
                low, high = low + box.low, high + box.high
        if not self.rounded:
            return Interval(low, high)
        error = sum((self._error(operator, inputs) for operator, inputs in ((self.ours, s), (self.theirs, t))), 0 * low)
        return Interval(low - error, high + error)

    @staticmethod
    @torch.no_grad()
    def _error(operator: Operator, boxes: Sequence[Interval]) -> Tensor | float:
        error = operator.rounding(boxes, operator.interval(*boxes))
        # beyond float32's range nothing is proved
        return 0.0 if error is None else (error * ENGINE).where(error * ENGINE <= LARGEST, 0.0)


def linear_part(ours: Affine, shapes: Sequence[Shape], given: Sequence[bool], like: Tensor) -> Affine:
    """Return A_s as an operator on the inputs that have a difference."""
    if len(given) == 1 and not isinstance(ours, General):
        return _without_constant(ours)
    zeros = [like.new_zeros(shape) for shape in shapes]

    def spread(values: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(values)
        return [next(rest) if part else zero for zero, part in zip(zeros, given, strict=True)]

    def function(*values: Tensor) -> Tensor:
        return (ours.forward(*(v[None] for v in spread(values))) - ours.forward(*(z[None] for z in zeros)))[0]

    def absolute(*values: Tensor) -> Tensor:
        return ours.half_width(*(v[None] for v in spread(values)))[0]

    before = [shape for shape, part in zip(shapes, given, strict=True) if part]
    after = tuple(ours.forward(*(zero[None] for zero in zeros)).shape[1:])
    return General(function, before, after, like, absolute)


def _without_constant(ours: Affine) -> Affine:
    if isinstance(ours, Dense):
        return Dense(ours.weight, None, ours.after)
    if isinstance(ours, Convolution):
        return _convolution(ours, ours.weight, None)
    return Scale(ours.scale, None, ours.shape) if isinstance(ours, Scale) else ours


def _convolution(like: Convolution, weight: Tensor, bias: Tensor | None) -> Convolution:
    return Convolution(
        weight, bias, like.stride, like.padding, like.dilation, like.groups, before=like.before, after=like.after
    )


def change_of(ours: Affine, theirs: Affine, like: Tensor) -> Affine | None:
    """Return the operator A_s - A_t with the constant b_s - b_t; None if both are zero."""
    if isinstance(ours, Reshape | Sum):
        return None
    if isinstance(ours, Dense | Convolution) and isinstance(theirs, Dense | Convolution):
        weight, bias = ours.weight - theirs.weight, _minus_bias(ours.bias, theirs.bias)
        if not bool(weight.any()) and bias is None:
            return None
        return Dense(weight, bias, ours.after) if isinstance(ours, Dense) else _convolution(ours, weight, bias)
    if isinstance(ours, Scale) and isinstance(theirs, Scale):
        scale, shift = ours.scale - theirs.scale, _minus_bias(ours.shift, theirs.shift)
        return None if not bool(scale.any()) and shift is None else Scale(scale, shift, ours.shape)
    return _minus_general(ours, theirs, like)


def _minus_general(ours: Affine, theirs: Affine, like: Tensor) -> Affine | None:
    assert isinstance(ours, General) and isinstance(theirs, General)

    def function(*values: Tensor) -> Tensor:
        return (ours.forward(*(v[None] for v in values)) - theirs.forward(*(v[None] for v in values)))[0]

    def absolute(*values: Tensor) -> Tensor:
        return (ours.half_width(*(v[None] for v in values)) + theirs.half_width(*(v[None] for v in values)))[0]

    constant = function(*(like.new_zeros(shape) for shape in ours.before))
    if not _same_linear_part(ours, theirs, like):
        return General(function, ours.before, ours.after, like, absolute)
    if not bool(constant.any()):
        return None
    return General(
        lambda *v: constant + 0 * sum(part.sum() for part in v),
        ours.before,
        ours.after,
        like,
        lambda *v: 0 * absolute(*v),
    )


def _same_linear_part(ours: General, theirs: General, like: Tensor) -> bool:
    """Return whether both pull one random row back to the same bits.

    Equal functions always do; different ones do only if they differ by rounding.
    """
    row = torch.rand((1, *ours.after), generator=torch.Generator().manual_seed(0), dtype=like.dtype).to(like.device)
    one, other = (operator.push(Rows(row), like.new_zeros(1, dtype=torch.int64)).inputs for operator in (ours, theirs))
    return all(torch.equal(a.values, b.values) for a, b in zip(one, other, strict=True) if a and b)


def _minus_bias(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None and other is None:
        return None
    bias = (0 if one is None else one) - (0 if other is None else other)
    assert isinstance(bias, Tensor)
    return bias if bool(bias.any()) else None
