"""Small chains of affine layers and ReLUs, as matrices."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.bound_propagation.native.noise import ENGINE
from verifiers.graph.affine import Affine
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Elementwise, Interval
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.rounding import LARGEST, magnitude
from verifiers.graph.rows import Shape, shape_size

#: The most entries of a node, beyond which matrices waste more than they save.
WIDEST = 512


@dataclass(frozen=True)
class Layer:
    """Consecutive affine operators, and their composition ``weight @ a + bias`` on flat values.

    Attributes:
        operators: the operators, first to last.
        before: shape of the first one's input.
        weight, bias: the composition.
    """

    operators: Sequence[Affine]
    before: Shape
    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"]

    @classmethod
    def of(cls, operators: Sequence[Affine], before: Shape, like: Tensor) -> "Layer":
        """Compose operators."""
        size = shape_size(before)
        columns = torch.eye(size, dtype=like.dtype, device=like.device).reshape(size, *before)
        constant = like.new_zeros((1, *before))
        for operator in operators:
            columns, constant = operator.linear(columns), operator.forward(constant)
        return cls(operators, before, columns.flatten(1).T.contiguous(), constant.flatten())

    def interval(
        self, low: Float[Tensor, "batch in"], high: Float[Tensor, "batch in"], *, rounded: bool
    ) -> tuple[Interval, Float[Tensor, "batch out"], Bool[Tensor, " batch"]]:
        """Bound the outputs over boxes of the inputs; with ``rounded``, of every float32 machine.

        Returns:
            The intervals, a bound of the error of float32 since the inputs, and the boxes where a value may overflow:
            nothing is proved there.
        """
        box = Interval(*(end.reshape(len(low), *self.before) for end in (low, high)))
        error, over = torch.zeros_like(box.low), torch.zeros(len(low), dtype=torch.bool, device=low.device)
        for operator in self.operators:
            after, own = operator.interval(box), None
            if rounded:
                own = operator.rounding([box], after)
                error = operator.half_width(error) * ENGINE
            else:
                error = torch.zeros_like(after.low)
            if own is not None:
                own = own * ENGINE
                fits = magnitude(after) + own <= LARGEST
                own, over = own.where(fits, 0.0), over | ~fits.flatten(1).all(1)
                error, after = error + own, Interval(after.low - own, after.high + own)
            box = after
        return Interval(*(end.flatten(1) for end in box)), error.flatten(1), over


@dataclass(frozen=True)
class Chain:
    """Affine layers with a ReLU between each and the next."""

    layers: Sequence[Layer]

    @property
    def hidden(self) -> int:
        """The number of ReLUs."""
        return sum(len(layer.bias) for layer in self.layers[:-1])

    @property
    def shape(self) -> list[int]:
        """The number of inputs, then of entries after every layer."""
        return [self.layers[0].weight.shape[1], *(len(layer.bias) for layer in self.layers)]


def chain_of(graph: Graph) -> Chain | None:
    """Read a graph as a chain; None if it is none, or too wide."""
    if any(shape_size(node.shape) > WIDEST for node in graph.nodes):
        return None
    layers: list[Layer] = []
    operators: list[Affine] = []
    before = graph.nodes[0].shape
    for position, node in enumerate(graph.nodes[1:], start=1):
        if node.inputs != (position - 1,):
            return None
        if isinstance(node.operator, Affine) and node.operator.perturbation is None:
            operators.append(node.operator)
        elif isinstance(node.operator, Elementwise) and isinstance(node.operator.activation, Relu) and operators:
            layers.append(Layer.of(operators, before, graph.like))
            operators, before = [], node.shape
        else:
            return None
    return Chain([*layers, Layer.of(operators, before, graph.like)]) if operators else None
