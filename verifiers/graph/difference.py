"""Combine two networks of one architecture in one graph of values t of the teacher, s of the student and d = s - t.

For pruned, quantised and fine-tuned copies d is small, and bounding it directly is tighter than subtracting two bounds
(ReluDiff, arXiv 2001.03662; NeuroDiff, arXiv 2009.09943). Each of the three intersects its interval with what the other
two imply. Rows of d are rows of s and t: only at ReLUs are opposite coefficients of both bounded together.

In float32 each network rounds by itself: t and s are the values that machines compute, and d is exactly their
difference.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from verifiers.graph.affine import Affine, Convolution, General, Sum
from verifiers.graph.affine_difference import AffineDifference, Difference, change_of
from verifiers.graph.composed import Product
from verifiers.graph.graph import Builder, Graph, Node, Ref
from verifiers.graph.operators import Interval, Operator, is_plain_relu
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.relu_difference import ReluDifference


def same_structure(student: Graph, teacher: Graph) -> bool:
    """Return whether two graphs are one architecture, up to their weights."""
    one, other = (
        [(n.kind, n.inputs, n.shape, _type(n.operator), _geometry(n.operator)) for n in g.nodes]
        for g in (student, teacher)
    )
    return one == other


def _type(operator: Operator | None) -> type:
    """Return the class of an operator; a product of layers is of its layers' class."""
    return operator.layers if isinstance(operator, Product) else type(operator)


def _geometry(operator: Operator | None) -> tuple[Any, ...]:
    """Return the settings that affine operators must share, besides their shapes, to have their weights subtracted."""
    if isinstance(operator, Convolution):
        steps = (operator.stride, operator.padding, operator.dilation, operator.groups)
        return (tuple(operator.weight.shape), *steps)
    return tuple(operator.signs) if isinstance(operator, Sum) else ()


class Values(NamedTuple):
    """One place of both networks; d is None where t and s are the same node."""

    t: Ref
    s: Ref
    d: Ref | None


def coupled(student: Graph, teacher: Graph, *, rounded: bool = True) -> Graph:
    """Build the graph whose output is the student's logits, the teacher's logits, and their difference.

    With ``rounded``, equal layers of both networks may round differently; without, they are one node until an operator
    differs.
    """
    builder = Builder(teacher.like)
    image = Ref(0, teacher.nodes[0].shape)
    places = [Values(image, image, None)]
    for position in range(1, len(teacher.nodes)):
        ours, theirs = student.nodes[position], teacher.nodes[position]
        builder.path, builder.kind = theirs.path, theirs.kind
        places.append(next_values(builder, ours, theirs, [places[i] for i in theirs.inputs], rounded=rounded))
    builder.path, builder.kind = "", "pair"
    return Graph(joined(builder, places[-1]), teacher.like)


def next_values(builder: Builder, ours: Node, theirs: Node, before: Sequence[Values], *, rounded: bool) -> Values:
    """Append a layer of both networks, and the difference behind it."""
    assert ours.operator is not None and theirs.operator is not None
    t_in, s_in = [place.t for place in before], [place.s for place in before]
    d_in = [place.d for place in before if place.d is not None]
    t = builder.add(theirs.operator, t_in, theirs.shape)
    if not d_in and _same(ours.operator, theirs.operator, t_in, builder.like, rounded=rounded):
        return Values(t, t, None)
    s = builder.add(ours.operator, s_in, theirs.shape)
    if isinstance(ours.operator, Affine) and isinstance(theirs.operator, Affine):
        given = [place.d is not None for place in before]
        shapes = [place.t.shape for place in before]
        operators = ours.operator, theirs.operator
        affine = AffineDifference(*operators, given, shapes, builder.like, rounded=rounded)
        return Values(t, s, builder.add(affine, [t, s, *t_in, *s_in, *d_in], theirs.shape))
    if d_in and is_plain_relu(ours.operator) and is_plain_relu(theirs.operator):
        return Values(t, s, builder.add(ReluDifference(), [t, s, t_in[0], s_in[0], d_in[0]], theirs.shape))
    return Values(t, s, builder.add(Difference(), [t, s], theirs.shape))


def _same(ours: Operator, theirs: Operator, inputs: Sequence[Ref], like: Tensor, *, rounded: bool) -> bool:
    """Return whether both operators give the same values for the same inputs."""
    if isinstance(ours, Affine) and isinstance(theirs, Affine):
        equal = change_of(ours, theirs, like) is None
    else:
        equal = _equal(ours, theirs)
    return equal and (not rounded or all(_exact(operator, inputs, like) for operator in (ours, theirs)))


def joined(builder: Builder, logits: Values) -> list[Node]:
    """Append both logits and their difference in a row, and return all nodes."""
    inputs = [logits.t] if logits.d is None else [logits.s, logits.t, logits.d]

    def function(*values: Tensor) -> Tensor:
        return torch.cat([values[0], values[0], 0 * values[0]] if len(values) == 1 else list(values), 1)

    after = (1, 3 * logits.t.shape[1])
    joined = General(function, [ref.shape for ref in inputs], after, builder.like)
    joined.computed = False
    builder.add(joined, inputs, after)
    return builder.nodes


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
