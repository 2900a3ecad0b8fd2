"""The graph of a captured network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from verifiers.core.errors import Contradiction, Unsupported
from verifiers.graph.affine import Affine, Reshape, Scale
from verifiers.graph.operators import Elementwise, Operator, Paired
from verifiers.graph.relaxations.piecewise import LeakyRelu, Relu
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.relaxations.staircase import Staircase
from verifiers.graph.rows import Shape
from verifiers.graph.watch import line_of


@dataclass(frozen=True)
class Node:
    """An operator with its inputs (positions in the graph), its output shape for one sample, and its place."""

    operator: Operator | None  # None for the image
    inputs: tuple[int, ...]
    shape: Shape
    path: str
    kind: str


class Triple(NamedTuple):
    """The nodes of d = s - t in a graph of two networks; ``relu`` is True if relu(s) - relu(t) is a node too."""

    t: int
    s: int
    d: int
    relu: bool


class Graph:
    """Nodes in topological order; node 0 is the image, the last one gives the logits.

    Args:
        nodes: the nodes.
        like: one image, as a batch of one; gives the dtype and the device.
        again: makes the same graph in float32.
    """

    def __init__(self, nodes: Sequence[Node], like: Tensor, again: "Callable[[], Graph] | None" = None) -> None:
        self.nodes, self.like, self._again = list(nodes), like, again

    @cached_property
    def coarse(self) -> "Graph | None":
        """The same graph in float32, for searches whose results are proved in float64; None if there is none."""
        if self._again is None:
            return None
        try:
            found = self._again()
        except (Unsupported, Contradiction):
            return None
        shapes = [[(node.inputs, node.shape, node.kind) for node in graph.nodes] for graph in (self, found)]
        return found if shapes[0] == shapes[1] else None

    @property
    def output(self) -> int:
        return len(self.nodes) - 1

    def values(self, x: Float[Tensor, "batch *shape"]) -> list[Float[Tensor, "batch ..."]]:
        """Compute the values of all nodes."""
        found: list[Tensor] = [x.reshape(len(x), *self.nodes[0].shape)]
        for node in self.nodes[1:]:
            assert node.operator is not None
            found.append(node.operator.forward(*(found[i] for i in node.inputs)))
        return found

    def __call__(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """Compute the logits."""
        return self.values(x)[-1].flatten(1)

    @cached_property
    def affine(self) -> list[bool]:
        """True for each node that is an affine function of the image."""
        known = [True]
        for node in self.nodes[1:]:
            known.append(isinstance(node.operator, Affine) and all(known[i] for i in node.inputs))
        return known

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.nodes[-1].shape[-1]

    def affine_operator(self, position: int) -> bool:
        """Return whether the operator of a node is affine."""
        return isinstance(self.nodes[position].operator, Affine)

    @cached_property
    def apart(self) -> list[bool]:
        """True for each node whose every entry is a monotone function of one entry of the image: its codes, too."""
        known = [True]
        for node in self.nodes[1:]:
            steps = isinstance(node.operator, Elementwise) and isinstance(node.operator.activation, Staircase)
            known.append((steps or isinstance(node.operator, Scale | Reshape)) and known[node.inputs[0]])
        return known

    @cached_property
    def coded(self) -> list[bool]:
        """True for each node of ``apart`` that holds codes: rows are least on its box, and no less on the image's."""
        known = [False]
        for node, apart in zip(self.nodes[1:], self.apart[1:], strict=True):
            steps = isinstance(node.operator, Elementwise) and isinstance(node.operator.activation, Staircase)
            known.append(apart and (steps or known[node.inputs[0]]))
        return known

    @cached_property
    def signs_suffice(self) -> list[bool]:
        """True for each node all of whose consumers become linear once the signs of its entries are known."""
        known = [True] * len(self.nodes)
        for node in self.nodes[1:]:
            hinge = isinstance(node.operator, Elementwise) and isinstance(node.operator.activation, Relu | LeakyRelu)
            linear = hinge or isinstance(node.operator, Affine)
            difference = isinstance(node.operator, ReluDifference)
            for place, i in enumerate(node.inputs):
                known[i] = known[i] and (linear or (difference and place < len(node.inputs) - 1))
        return known

    @cached_property
    def code_ends(self) -> dict[int, tuple[float, float]]:
        """The nodes that are rounded to codes and nothing else, with the ends of the range before rounding."""
        found: dict[int, set[tuple[float, float]]] = {}
        for node in self.nodes[1:]:
            steps = node.operator.activation if isinstance(node.operator, Elementwise) else None
            for i in node.inputs:
                ends = steps.ends if isinstance(steps, Staircase) else (0.0, 0.0)
                found.setdefault(i, set()).add(ends)
        return {i: next(iter(ends)) for i, ends in found.items() if len(ends) == 1 and ends != {(0.0, 0.0)}}

    @cached_property
    def triples(self) -> dict[int, Triple]:
        """The triples of related nodes, by each of the three."""
        relus = {node.inputs[-1] for node in self.nodes if isinstance(node.operator, ReluDifference)}
        found: dict[int, Triple] = {}
        for d, node in enumerate(self.nodes):
            if isinstance(node.operator, Paired):
                t, s = node.inputs[:2]
                found.update(dict.fromkeys((t, s, d), Triple(t, s, d, d in relus)))
        return found


@dataclass(frozen=True)
class Ref:
    """An intermediate value that depends on the image."""

    node: int
    shape: Shape


class Builder:
    """Build a graph; the lowering functions append to it.

    Args:
        like: one image, as a batch of one.
        checked: test relaxations before they are used.
    """

    def __init__(self, like: Tensor, *, checked: bool = True) -> None:
        self.checked = checked
        self.nodes = [Node(None, (), tuple(like.shape), "", "image")]
        self.like = like
        self.path = self.kind = ""
        self.trace: str | None = None  # where the operator was called
        self._errors: dict[int, tuple[Tensor, Tensor]] = {}

    def add(self, made: Operator, inputs: Sequence[Ref], shape: Sequence[int]) -> Ref:
        """Append an operator."""
        self.nodes.append(Node(made, tuple(ref.node for ref in inputs), tuple(shape), self.path, self.kind))
        return Ref(len(self.nodes) - 1, tuple(shape))

    def note(self, constant: Tensor, error: Tensor) -> None:
        """Record how far float32 may be from a constant that the network computes."""
        self._errors[id(constant)] = constant, error

    @property
    def exact(self) -> bool:
        """True if no constant has a recorded error."""
        return not self._errors

    def error(self, constant: Tensor) -> Tensor | None:
        """Return the recorded error of a constant; None if it is a float32 number."""
        return self._errors[id(constant)][1] if id(constant) in self._errors else None

    def refuse(self, reason: str) -> Unsupported:
        """Return the error that rejects the current operator."""
        return Unsupported(
            f"native: operator {self.kind!r} at {self.path or 'the network itself'!r}{line_of(self.trace)}: {reason}"
        )
