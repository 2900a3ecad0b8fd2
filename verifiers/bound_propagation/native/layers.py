"""Bound the values inside a network by intervals, differentiably, for objectives that need more than the logits."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.native.training import Box, intervals_of, least, refused
from verifiers.core.errors import InputError
from verifiers.graph.affine import Affine
from verifiers.graph.operators import Elementwise

#: Bounds of inner values.
Ends = tuple[Float[Tensor, "batch ..."], Float[Tensor, "batch ..."]]
Values = Callable[[Float[Tensor, "many *values"]], Float[Tensor, "many classes"]]


def margins_and_features(
    model: nn.Module, box: Box, y: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch classes"], Ends]:
    """Bound f_y - f_j from below and the inputs of the last affine operator from both sides, by intervals.

    Raises:
        InputError: the network cannot be bounded, or does not end in an affine operator.
    """
    with refused("ibp"):
        bounds, rows = intervals_of(model, None, box, y)
        last = bounds.graph.nodes[bounds.graph.output]
        if not isinstance(last.operator, Affine) or len(last.inputs) != 1:
            raise InputError("features are the input of a network's last layer, and this network does not end in one")
        low, high = bounds.intervals[last.inputs[0]]
        return least(bounds, rows, "ibp"), (low, high)


def activation_boxes(model: nn.Module, box: Box) -> list[Ends]:
    """Bound the inputs of each activation of a network by intervals.

    Raises:
        InputError: the network cannot be bounded.
    """
    with refused("ibp"):
        bounds, _ = intervals_of(model, None, box, torch.zeros(len(box[0]), dtype=torch.long, device=box[0].device))
        inputs = [node.inputs[0] for node in bounds.graph.nodes if isinstance(node.operator, Elementwise)]
        return [tuple(bounds.intervals[place]) for place in inputs]  # type: ignore[misc]


@dataclass(frozen=True)
class Split:
    """A network in two parts.

    Attributes:
        margins: lower bounds of f_y - f_j over the box, by intervals.
        box: bounds of the first part's values, differentiable.
        rest: computes the logits from such values.
    """

    margins: Float[Tensor, "batch classes"]
    box: Ends
    rest: Values


def split_before(model: nn.Module, box: Box, y: Int[Tensor, " batch"], activations: int) -> Split:
    """Bound the values before the last few activations and their layers, and return the rest of the network.

    ``activations`` of them are in the rest; all of the network is the rest if it has no more. The rest computes in
    eval mode, with the weights of today.

    Raises:
        InputError: the network cannot be bounded, or a shortcut leads past the place of the split.
    """
    with refused("ibp"):
        bounds, rows = intervals_of(model, None, box, y)
        graph = bounds.graph
        found = [place for place, node in enumerate(graph.nodes) if isinstance(node.operator, Elementwise)]
        cut = found[-activations - 1] if len(found) > activations else 0
        rest = range(cut + 1, len(graph.nodes))
        if any(place < cut for later in rest for place in graph.nodes[later].inputs):
            raise InputError(f"a shortcut leads past the last {activations} activations: take another number of them")

        def values(z: Tensor) -> Tensor:
            known = {cut: z}
            for place in rest:
                operator, inputs = graph.nodes[place].operator, graph.nodes[place].inputs
                assert operator is not None
                known[place] = operator.forward(*(known[i] for i in inputs))
            return known[graph.output].flatten(1)

        low, high = bounds.intervals[cut]
        return Split(least(bounds, rows, "ibp"), (low, high), values)
