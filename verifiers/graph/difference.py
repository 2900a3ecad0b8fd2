"""Combine two networks of one architecture in one graph of teacher values t and differences d = student - teacher.

For pruned, quantised and fine-tuned copies d is small, and bounding it directly is tighter than subtracting two bounds
(ReluDiff, arXiv 2001.03662; NeuroDiff, arXiv 2009.09943). An affine layer gives
d' = A_s d + (A_s - A_t) t + (b_s - b_t); ReLU has its own relaxation; other operators are applied to t + d and to t.

In float32 each network rounds by itself. A machine computes t and s = t + d, so d' is off by the errors of both.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import Affine, Convolution, Dense, General, Reshape, Scale, Sum
from verifiers.graph.graph import Builder, Graph, Node, Ref
from verifiers.graph.operators import Elementwise, Interval, Operator, Pushed
from verifiers.graph.relaxations.convex import Log, Reciprocal, Rsqrt, Sqrt
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.relaxations.powers import Power
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.rows import Rows

#: Activations that are not defined everywhere.
PARTIAL = (Log, Power, Reciprocal, Rsqrt, Sqrt)


def same_structure(student: Graph, teacher: Graph) -> bool:
    """Return whether two graphs are one architecture, up to their weights."""
    one, other = (
        [(n.kind, n.inputs, n.shape, type(n.operator), _geometry(n.operator)) for n in g.nodes]
        for g in (student, teacher)
    )
    return one == other


def _geometry(operator: Operator | None) -> tuple[Any, ...]:
    """Return the settings that affine operators must share, besides their shapes, to have their weights subtracted."""
    if isinstance(operator, Convolution):
        steps = (operator.stride, operator.padding, operator.dilation, operator.groups)
        return (tuple(operator.weight.shape), *steps)
    return tuple(operator.signs) if isinstance(operator, Sum) else ()


def differential(student: Graph, teacher: Graph, *, rounded: bool = True) -> Graph:
    """Build the graph whose output is the student's logits followed by the teacher's.

    With ``rounded``, equal layers of both networks may round differently; without, they have no difference. A tiny
    difference stays tiny through affine layers and ReLU; other operators are bounded at t + d and at t, which loses it.

    Raises:
        Unsupported: an operator is not defined everywhere, and the two differ in its input.
    """
    builder = _Builder(teacher.like, rounded=rounded)
    values: list[Ref] = [Ref(0, teacher.nodes[0].shape)]
    differences: list[Ref | None] = [None]
    for position in range(1, len(teacher.nodes)):
        ours, theirs = student.nodes[position], teacher.nodes[position]
        builder.path, builder.kind = theirs.path, theirs.kind
        assert ours.operator is not None and theirs.operator is not None
        t = [values[i] for i in theirs.inputs]
        d = [differences[i] for i in theirs.inputs]
        values.append(builder.add(theirs.operator, t, theirs.shape))
        differences.append(_difference(builder, ours.operator, theirs, t, d, values[-1]))
    builder.path, builder.kind = "", "pair"
    return Graph(_joined(builder, values[-1], differences[-1]), teacher.like)


class _Builder(Builder):
    """Build a graph of differences; most of its operators relate values and are not computed by any machine."""

    def __init__(self, like: Tensor, *, rounded: bool) -> None:
        super().__init__(like)
        self.rounded = rounded

    def relate(self, made: Affine, inputs: Sequence[Ref], shape: Sequence[int]) -> Ref:
        """Append an operator that is not computed."""
        made = copy.copy(made)
        made.computed = False
        return self.add(made, inputs, shape)


class Deviation(Affine):
    """Add the parts of a difference d' of two networks; it is off by what both networks' operators are off by.

    The inputs are the parts, then the teacher's inputs t, then their differences d, without those that are None.
    """

    def __init__(self, ours: Operator, theirs: Operator, parts: int, given: Sequence[bool], like: Tensor) -> None:
        self.ours, self.theirs, self.parts, self.given, self.zero = ours, theirs, parts, given, like

    def forward(self, *values: Tensor) -> Tensor:
        zero = self.zero.expand(len(values[0]), *self.zero.shape[1:])
        return sum(values[: self.parts], start=zero)

    def half_width(self, *half_widths: Tensor) -> Tensor:
        return self.forward(*half_widths)

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        others = len(self.given) + sum(self.given)
        return Pushed([rows] * self.parts + [None] * others)

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor | None:
        """The sum of both operators' errors, the student's on t + d."""
        t = boxes[self.parts : self.parts + len(self.given)]
        d = iter(boxes[self.parts + len(self.given) :])
        s = [_moved(box, next(d)) if given else box for box, given in zip(t, self.given, strict=True)]
        errors = [op.rounding(at, op.interval(*at)) for op, at in ((self.ours, s), (self.theirs, t))]
        known = [error for error in errors if error is not None]
        return torch.stack(known).sum(0) if known else None


def _moved(box: Interval, by: Interval) -> Interval:
    return Interval(box.low + by.low, box.high + by.high)


def _joined(builder: _Builder, teacher: Ref, difference: Ref | None) -> list[Node]:
    inputs = [teacher] if difference is None else [teacher, difference]

    def function(t: Tensor, d: Tensor | None = None) -> Tensor:
        return torch.cat([t if d is None else t + d, t], 1)

    after = (1, 2 * teacher.shape[1])
    builder.relate(General(function, [ref.shape for ref in inputs], after, builder.like), inputs, after)
    return builder.nodes


def _difference(
    builder: _Builder, ours: Operator, theirs: Node, t: Sequence[Ref], d: Sequence[Ref | None], value: Ref
) -> Ref | None:
    assert theirs.operator is not None
    if isinstance(ours, Affine) and isinstance(theirs.operator, Affine):
        return _affine(builder, ours, theirs.operator, t, d, theirs.shape)
    changed = not _equal(ours, theirs.operator)
    if not changed and all(part is None for part in d):
        return _deviated(builder, ours, theirs.operator, [], t, d, theirs.shape)
    if isinstance(ours, Elementwise) and isinstance(ours.activation, PARTIAL):
        raise builder.refuse("the box of t + d may leave its domain")
    s = [
        t_i if d_i is None else builder.relate(Sum([1, 1]), [t_i, d_i], t_i.shape)
        for t_i, d_i in zip(t, d, strict=True)
    ]
    if isinstance(ours, Elementwise) and isinstance(ours.activation, Relu) and d[0] is not None:
        return builder.add(ReluDifference(), [t[0], d[0], s[0]], theirs.shape)
    applied = builder.add(ours, s, theirs.shape)
    return builder.relate(Sum([1, -1]), [applied, value], theirs.shape)


def _deviated(
    builder: _Builder,
    ours: Operator,
    theirs: Operator,
    parts: Sequence[Ref],
    t: Sequence[Ref],
    d: Sequence[Ref | None],
    shape: Sequence[int],
) -> Ref | None:
    """Append the sum of the parts of a difference, with the errors of both operators; None if it is 0."""
    if not builder.rounded or (_exact(ours, t, builder.like) and _exact(theirs, t, builder.like)):
        if len(parts) < 2:
            return parts[0] if parts else None
        return builder.relate(Sum([1] * len(parts)), parts, shape)
    present = [part for part in d if part is not None]
    zero = builder.like.new_zeros((1, *shape))
    made = Deviation(ours, theirs, len(parts), [part is not None for part in d], zero)
    return builder.add(made, [*parts, *t, *present], shape)


def _exact(operator: Operator, inputs: Sequence[Ref], like: Tensor) -> bool:
    """Return whether float32 computes an operator without an error."""
    boxes = [Interval(like.new_ones((1, *ref.shape)), like.new_full((1, *ref.shape), 2.0)) for ref in inputs]
    return operator.rounding(boxes, operator.interval(*boxes)) is None


def _equal(one: Any, other: Any) -> bool:
    """Return whether two operators, or settings of operators, are the same function."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, Operator | Activation):
        return vars(one).keys() == vars(other).keys() and all(_equal(vars(one)[k], vars(other)[k]) for k in vars(one))
    return bool(one == other)


def _affine(
    builder: _Builder, ours: Affine, theirs: Affine, t: Sequence[Ref], d: Sequence[Ref | None], shape: Sequence[int]
) -> Ref | None:
    parts: list[Ref] = []
    if (change := _minus(ours, theirs, builder.like)) is not None:
        parts.append(builder.relate(change, t, shape))
    if any(part is not None for part in d):
        parts.append(_linear(builder, ours, t, d, shape))
    return _deviated(builder, ours, theirs, parts, t, d, shape)


def _linear(builder: _Builder, ours: Affine, t: Sequence[Ref], d: Sequence[Ref | None], shape: Sequence[int]) -> Ref:
    """Append A_s d, leaving out inputs without a difference."""
    present = [part for part in d if part is not None]
    if len(present) == len(d) == 1 and not isinstance(ours, General):
        return builder.relate(_without_constant(ours), present, shape)
    before = [ref.shape for ref in t]
    zeros = [builder.like.new_zeros(part) for part in before]

    def spread(values: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(values)
        return [zero if part is None else next(rest) for zero, part in zip(zeros, d, strict=True)]

    def function(*values: Tensor) -> Tensor:
        return (ours.forward(*(v[None] for v in spread(values))) - ours.forward(*(z[None] for z in zeros)))[0]

    def absolute(*values: Tensor) -> Tensor:
        return ours.half_width(*(v[None] for v in spread(values)))[0]

    made = General(function, [ref.shape for ref in present], tuple(shape), builder.like, absolute)
    return builder.relate(made, present, shape)


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


def _minus(ours: Affine, theirs: Affine, like: Tensor) -> Affine | None:
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
