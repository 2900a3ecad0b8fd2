"""Write softmax out as p_i = 1 / (1 + sum over j other than i of exp(x_j - x_i)), with a node for each step: the
differences of every pair, their exponentials both ways, and the sums.

Bounds of the steps follow differences of scores, which vary much less than the scores do and are shifted exactly. No
machine computes the steps: in float32 the whole softmax rounds once, at the last one.
Source: Shi et al., arXiv 2002.06622, and Wei et al., arXiv 2303.01713 (the bounds of the exponentials' reciprocal sum).
"""

from dataclasses import replace

import torch
from torch import Tensor

from verifiers.graph.affine import Affine, Dense, General, Sum
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise, Interval
from verifiers.graph.relaxations.convex import Exp
from verifiers.graph.relaxations.softmax import CAP, Softmax, SoftmaxOfSum
from verifiers.graph.rows import Shape, shape_size

#: The most differences of scores of one softmax; with more, its Jacobian is bounded instead.
MOST = 2**13


class _Step(Dense):
    """A step without rounding."""

    computed = False


class _Sums(_Step):
    """Sums of positive numbers of very different sizes."""

    def interval(self, *boxes: Interval) -> Interval:
        return Interval(*(self.forward(end) for end in boxes[0]))


class _Total(Sum):
    """A sum without rounding."""

    computed = False


class _Moved(General):
    """Axes in another order; no machine moves them."""

    computed = False


class CappedExp(Exp):
    """exp(min(sign x, CAP)) for a sign of 1 or -1: finite for all scores."""

    def __init__(self, sign: int = 1) -> None:
        self.direction = sign

    def __call__(self, x: Tensor) -> Tensor:
        return torch.exp((self.direction * x).clamp_max(CAP))

    def derivative(self, x: Tensor) -> Tensor:
        return self.direction * self(x)

    def tangent(self, low: Tensor, high: Tensor, alpha: Tensor | None) -> Tensor:
        if alpha is not None or self.direction > 0:
            return super().tangent(low, high, alpha)
        return -super().tangent(-high, -low, None)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> None:  # type: ignore[override]
        """No machine computes it."""
        return None

    @torch.no_grad()
    def _computable(self, low: Tensor, high: Tensor) -> Tensor:
        return (low <= high) & ((high if self.direction > 0 else -low) <= CAP)


def with_softmax_in_parts(graph: Graph) -> Graph:
    """Return the graph with every softmax of moderate size written out; the same graph if there is none."""
    if not any(_splits(node) for node in graph.nodes):
        return graph
    nodes: list[Node] = []
    place: list[int] = []
    for node in graph.nodes:
        moved = replace(node, inputs=tuple(place[i] for i in node.inputs))
        if _splits(node):
            _append(nodes, moved, graph.like)
        else:
            nodes.append(moved)
        place.append(len(nodes) - 1)
    return Graph(nodes, graph.like)


def _splits(node: Node) -> bool:
    operator = node.operator
    if type(operator) is not Softmax:
        return False
    n = node.shape[operator.axis]
    return n > 1 and shape_size(node.shape) * (n - 1) // 2 <= MOST


def _append(nodes: list[Node], node: Node, like: Tensor) -> None:
    softmax, shape = node.operator, node.shape
    assert isinstance(softmax, Softmax)
    (x,), n = node.inputs, shape[softmax.axis]

    def add(operator: Affine | Elementwise | Softmax, inputs: tuple[int, ...], after: Shape) -> int:
        nodes.append(Node(operator, inputs, after, node.path, node.kind))
        return len(nodes) - 1

    last = softmax.axis == -1
    order = torch.zeros(shape).movedim(softmax.axis, -1).shape if not last else shape
    if not last:
        x = add(_Moved(lambda v: v.movedim(softmax.axis, -1), [shape], order, like), (x,), order)
    pairs = torch.combinations(torch.arange(n, device=like.device))
    eye = torch.eye(n, dtype=like.dtype, device=like.device)
    first, second = eye[pairs[:, 0]], eye[pairs[:, 1]]
    wide = (*order[:-1], len(pairs))
    differences = add(_Step(second - first, None, wide), (x,), wide)
    totals = []
    for sign, own, bias in ((1, first, torch.ones_like(eye[0])), (-1, second, None)):
        powers = add(Elementwise(CappedExp(sign)), (differences,), wide)
        totals.append(add(_Sums(own.T.contiguous(), bias, order), (powers,), order))
    total = add(_Total([1, 1]), tuple(totals), order)
    found = add(SoftmaxOfSum(-1, order, fused=softmax.fused), (total, x), order)
    if not last:
        add(_Moved(lambda v: v.movedim(-1, softmax.axis), [order], shape, like), (found,), shape)
