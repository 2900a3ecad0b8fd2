"""Prove that a network sends no point of a box into given polyhedra.

A case is a set of linear inequalities in outputs and inputs. It is refuted on a box where some inequality fails
at every point, that is, where the largest of the case's values is positive.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.native.backward import BackwardRows
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.boxes import Boxes
from verifiers.graph.affine import Dense, Reshape, Sum
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise, Operator
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.rows import shape_size


@dataclass(frozen=True)
class HalfSpaces:
    """Values ``outputs @ y + inputs @ x + constant``; a case holds at a point where none of its values is positive.

    Attributes:
        outputs: coefficients of the network's outputs.
        inputs: coefficients of its inputs; None if all are 0.
        constant: the constants.
        case: the case of each value, numbered from 0; each case has a value.
    """

    outputs: Float[Tensor, "values outputs"]
    inputs: Float[Tensor, "values inputs"] | None
    constant: Float[Tensor, " values"]
    case: Int[Tensor, " values"]

    @property
    def cases(self) -> int:
        """The number of cases."""
        return int(self.case.max()) + 1

    def take(self, cases: Int[Tensor, " some"]) -> "HalfSpaces":
        """Select some of the cases, and number them anew."""
        chosen = (self.case[:, None] == cases).any(1)
        number = torch.full((self.cases,), -1, dtype=torch.long, device=cases.device)
        number[cases] = torch.arange(len(cases), device=cases.device)
        inputs = None if self.inputs is None else self.inputs[chosen]
        return HalfSpaces(self.outputs[chosen], inputs, self.constant[chosen], number[self.case[chosen]])

    def padded(self, outputs: int) -> "HalfSpaces":
        """Return the same values of a graph with further outputs, which count for nothing."""
        return replace(self, outputs=F.pad(self.outputs, (0, outputs - self.outputs.shape[1])))

    def values(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, "batch cases"]:
        """Compute the largest value of every case at points, in float64; at most 0 where the case holds."""
        found = y.double() @ self.outputs.T + self.constant
        if self.inputs is not None:
            found = found + x.flatten(1).double() @ self.inputs.T
        return self.largest(found.nan_to_num(torch.inf, torch.inf))

    def largest(self, values: Float[Tensor, "batch values"]) -> Float[Tensor, "batch cases"]:
        """Return the largest value of every case; nan counts as the least."""
        values = values.where(~values.isnan(), -torch.inf)
        start = values.new_full((len(values), self.cases), -torch.inf)
        return start.scatter_reduce(1, self.case.expand(len(values), -1), values, "amax")


@dataclass
class Sloped(Bounds):
    """Bounds that keep the rows' coefficients of the image."""

    slopes: list[Float[Tensor, "rows pixels"]] = field(default_factory=list)

    def minimum(self, back: BackwardRows, *, with_planes: bool) -> Planes:
        """Keep the slopes of rows that get planes, then minimise as ``BackwardPass.minimum``."""
        if with_planes:
            rows, shape = back.pending.get(0), self.graph.nodes[0].shape
            flat = back.constant.new_zeros((len(back.constant), shape_size(shape)))
            self.slopes.append(flat if rows is None else rows.dense(shape).values.detach().flatten(1))
        return super().minimum(back, with_planes=with_planes)


def lower_values(
    native: Native,
    boxes: Boxes,
    spaces: HalfSpaces,
) -> tuple[Float[Tensor, "batch values"], Float[Tensor, "batch values pixels"]]:
    """Bound values from below over boxes by CROWN; return the bounds, and the slopes of the functions behind them."""
    bounds = Sloped(native.graph, boxes, intersect=native.intersect, arithmetic=native.arithmetic)
    batch, rows = len(boxes), len(spaces.outputs)
    with torch.no_grad():
        bounds.propagate(refine=True)
        less = None if spaces.inputs is None else -spaces.inputs.expand(batch, -1, -1)
        found = bounds.by_rows(spaces.outputs.expand(batch, -1, -1), less).bound
    found = (found + spaces.constant).where(found < torch.inf, torch.nan)
    return found, torch.cat(bounds.slopes).reshape(batch, rows, -1)


class _Relation(Dense):
    """A linear function of values that no machine computes."""

    computed = False


class _Total(Sum):
    """A sum that no machine computes."""

    computed = False


def largest_values(graph: Graph, spaces: HalfSpaces) -> Graph:
    """Append nodes to a network's graph that compute the largest value of every case.

    ``max(a, b) = a + relu(b - a)``. A free lower slope s of that ReLU gives (1 - s) a + s b, so bounds that choose
    slopes combine the inequalities of a case. The nodes are exact: only the network rounds.
    """
    made = _Appended(graph)
    values = made.relation(made.flat(graph.output), spaces.outputs, spaces.constant)
    if spaces.inputs is not None:
        values = made.add(
            _Total([1, 1]), [values, made.relation(made.flat(0), spaces.inputs, None)], made.shape(values)
        )
    members = [(spaces.case == case).nonzero().flatten().tolist() for case in range(spaces.cases)]
    count = len(spaces.outputs)
    while any(len(each) > 1 for each in members):
        pairs, after = _pairs(members)
        eye = torch.eye(count, dtype=spaces.outputs.dtype, device=spaces.outputs.device)
        one, other = (eye[[pair[side] for pair in pairs]] for side in (0, 1))
        first = made.relation(values, one, None)
        gap = made.relation(values, other - one, None)
        hinge = made.add(Elementwise(Relu()), [gap], made.shape(gap))
        values, members, count = made.add(_Total([1, 1]), [first, hinge], made.shape(gap)), after, len(pairs)
    order = [each[0] for each in members]
    if order != list(range(count)):
        eye = torch.eye(count, dtype=spaces.outputs.dtype, device=spaces.outputs.device)
        made.relation(values, eye[order], None)
    return Graph(made.nodes, graph.like)


def _pairs(members: Sequence[Sequence[int]]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """Pair the values of every case, an odd one with itself; return the pairs, and each case's pairs."""
    pairs: list[tuple[int, int]] = []
    after = []
    for each in members:
        start = len(pairs)
        pairs += [(each[i], each[min(i + 1, len(each) - 1)]) for i in range(0, len(each), 2)]
        after.append(list(range(start, len(pairs))))
    return pairs, after


class _Appended:
    """The nodes of a graph, and more."""

    def __init__(self, graph: Graph) -> None:
        self.nodes = list(graph.nodes)

    def shape(self, position: int) -> tuple[int, ...]:
        return self.nodes[position].shape

    def add(self, operator: Operator, inputs: Sequence[int], shape: tuple[int, ...]) -> int:
        self.nodes.append(Node(operator, tuple(inputs), shape, "", "property"))
        return len(self.nodes) - 1

    def flat(self, position: int) -> int:
        """Return a node with the same entries in one row."""
        shape, flat = self.shape(position), (1, shape_size(self.shape(position)))
        return position if shape == flat else self.add(Reshape(shape, flat), [position], flat)

    def relation(self, position: int, weight: Tensor, bias: Tensor | None) -> int:
        shape = (1, len(weight))
        return self.add(_Relation(weight, bias, shape), [position], shape)


@dataclass(frozen=True)
class Ended:
    """The result of a proof.

    Attributes:
        proved: every case is refuted on the whole box.
        parts: number of bounded parts of the box.
        bound: the least bound that was proved for the cases' values; nan if none is known.
        full: memory could run out.
        late: the deadline came first.
        reason: why nothing was proved, if neither a point was found nor the deadline came; empty otherwise.
    """

    proved: bool
    parts: int = 0
    late: bool = False
    reason: str = ""
    bound: float = float("nan")
    full: bool = False
