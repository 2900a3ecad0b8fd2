"""Small chains of affine layers and ReLUs, as matrices."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.noise import ENGINE
from verifiers.graph.affine import Affine, Dense, Reshape
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval, is_plain_relu
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

    def take(self, outputs: Int[Tensor, " kept"] | None, inputs: Int[Tensor, " read"] | None) -> "Layer | None":
        """Leave out outputs, and inputs that are always 0; None stands for all. None if the operators do not allow it.

        Products with 0 are exact, so float32 is as near to the smaller layer.
        """
        dense = [each for each in self.operators if not isinstance(each, Reshape)]
        if len(dense) != 1 or not isinstance(dense[0], Dense):
            return None
        weight, bias = self.weight, dense[0].bias
        if outputs is not None:
            weight, bias = weight[outputs], None if bias is None else bias[outputs]
        if inputs is not None:
            weight = weight[:, inputs]
        small = Dense(weight.contiguous(), bias, (1, len(weight)))
        return Layer.of([small], (1, weight.shape[1]), weight)

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return weight and bias, rounded to a dtype."""
        return (self.weight, self.bias) if dtype == self.weight.dtype else self._single

    @cached_property
    def _single(self) -> tuple[Tensor, Tensor]:
        return self.weight.float(), self.bias.float()

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


def without(chain: Chain, kept: Sequence[Int[Tensor, " _"]]) -> Chain | None:
    """Leave out ReLUs that are always 0, given the others of every layer; None if the operators do not allow it."""
    outputs, inputs = [*kept, None], [None, *kept]
    layers = [layer.take(*each) for layer, *each in zip(chain.layers, outputs, inputs, strict=True)]
    found = [layer for layer in layers if layer is not None]
    return Chain(found) if len(found) == len(layers) else None


def chain_of(graph: Graph) -> Chain | None:
    """Read a graph as a chain of affine layers and ReLUs; None if it is none, has no ReLU, or is too wide."""
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
        elif is_plain_relu(node.operator) and operators:
            layers.append(Layer.of(operators, before, graph.like))
            operators, before = [], node.shape
        else:
            return None
    return Chain([*layers, Layer.of(operators, before, graph.like)]) if layers and operators else None
