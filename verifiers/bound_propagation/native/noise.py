"""The rounding of the deployed network: each of its nodes is the exact function of its inputs, plus a bounded error.

A float32 machine that evaluates a node from float32 inputs is off by at most e, a bound that holds for every order of
summation. The deployed network is therefore the exact one with a noise of at most e at each node. Intervals and rows
bound all networks with such noise, and the exact network is one of them. Intervals widen by e, and rows that stand at a
node's output lose the sum of |coefficient| e. Comparing two logits is exact, so the specification adds nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.graph.affine import Affine
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Interval
from verifiers.graph.rounding import ENGINE, LARGEST
from verifiers.graph.rows import Rows


@dataclass
class Noise:
    """The errors of all nodes on one batch of balls.

    Attributes:
        overflow: samples on whose ball a value may leave float32's range: nothing is proved about them.
        errors: by node, an error for every entry, for each sample or for all; nodes without one are exact.
        drift: by node that is an affine function of the image, the error since the image.
    """

    overflow: Bool[Tensor, " batch"]
    errors: dict[int, Float[Tensor, "..."]] = field(default_factory=dict)
    drift: dict[int, Float[Tensor, "..."]] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> "Noise":
        """Convert the errors."""
        errors, drift = ({i: each.to(dtype) for i, each in by.items()} for by in (self.errors, self.drift))
        return Noise(self.overflow, errors, drift)

    def widened(self, node: Node, position: int, boxes: Sequence[Interval], after: Interval) -> Interval:
        """Compute the error of a node, and widen its interval by it."""
        assert node.operator is not None
        with torch.no_grad():
            error = node.operator.rounding([Interval(*(end.detach() for end in box)) for box in boxes], after)
            if error is None:
                return after
            error = (error * ENGINE).to(after.low.dtype)
            largest = torch.maximum(-after.low, after.high) + error
            over = ~(largest.flatten(1).amax(1) <= LARGEST)
            if bool(over.any()):  # nothing is proved about these samples
                self.overflow = self.overflow | over
                error = error.where(error <= LARGEST, 0.0)
            self.errors[position] = error
        return Interval(after.low - error, after.high + error)

    def on(self, position: int, rows: Rows, samples: Int[Tensor, " rows"]) -> Float[Tensor, " rows"] | None:
        """Bound the error of a node in rows of its output; None if it is exact."""
        if (error := self.errors.get(position)) is None:
            return None
        return rows.take(rows.values.abs()).dot(error, samples)

    def since_image(self, graph: Graph, position: int) -> Float[Tensor, "batch *shape"]:
        """Bound the error since the image of a node that is an affine function of the image."""
        if position not in self.drift:
            node = graph.nodes[position]
            if isinstance(node.operator, Affine):
                found = node.operator.half_width(*(self.since_image(graph, i) for i in node.inputs)) * ENGINE
            else:
                found = graph.like.new_zeros((len(self.overflow), *node.shape))
            self.drift[position] = found + self.errors[position] if position in self.errors else found
        return self.drift[position]
