"""Write out the affine maps of a network of affine maps and activations as matrices.

With h_0 the image, z_k = sum_i A_ki h_i + b_k and h_k = s_k(z_k); the logits are the last z. That form covers chains,
residual networks and any other combination of affine operators and elementwise activations.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation import Bounds, Native, native_engine
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic
from verifiers.graph.affine import Affine
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise, Interval
from verifiers.graph.program import Program
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.rows import Shape, shape_size

#: The most entries of one matrix: 2048 units before and after, or more if one side is small.
ENTRIES = 2**22


@dataclass(frozen=True)
class Layer:
    """One activation with the affine map before it; the logits have no activation.

    Attributes:
        position: the node of the graph that holds z.
        shape: the shape of z for one sample.
        weights: A by the layer that it reads; 0 is the image, k the activation of layer k.
        activation: s; None for the logits.
    """

    position: int
    shape: Shape
    weights: dict[int, Float[Tensor, "out _"]]
    activation: Activation | None


@dataclass(frozen=True)
class Layers:
    """Layers 1 to L, then the logits; layer k reads only earlier ones."""

    graph: Graph
    layers: tuple[Layer, ...]

    @property
    def hidden(self) -> tuple[Layer, ...]:
        """All but the logits."""
        return self.layers[:-1]

    @property
    def output(self) -> Layer:
        """The logits."""
        return self.layers[-1]

    def boxes(self, bounds: Bounds) -> list[Interval]:
        """Return the box of z from propagated bounds, one per hidden layer."""
        return [bounds.intervals[layer.position] for layer in self.hidden]

    @cached_property
    def chain(self) -> list[Tensor] | None:
        """W_1, ..., W_L+1 if each layer reads only the one before it, else None."""
        if any(list(layer.weights) != [k] for k, layer in enumerate(self.layers)):
            return None
        return [layer.weights[k] for k, layer in enumerate(self.layers)]


def written_out(graph: Graph) -> Layers:
    """Write out the matrices of a graph.

    Raises:
        Unsupported: an operator is neither affine nor an activation, or a matrix is too large; the message names it.
    """
    sources = [0] + [i for i, node in enumerate(graph.nodes) if isinstance(node.operator, Elementwise)]
    for node in graph.nodes[1:]:
        if not isinstance(node.operator, Affine | Elementwise):
            raise refusal(node, "has no matrix and is not an elementwise activation")
    ends = [graph.nodes[i].inputs[0] for i in sources[1:]] + [graph.output]
    _check_sizes(graph, sources, ends)
    tangents = [_tangents(graph, source) for source in sources]
    layers = []
    for k, position in enumerate(ends):
        weights = {
            i: values[position].flatten(1).T.contiguous() for i, values in enumerate(tangents) if position in values
        }
        operator = graph.nodes[sources[k + 1]].operator if k + 1 < len(sources) else None
        activation = operator.activation if isinstance(operator, Elementwise) else None
        layers.append(Layer(position, graph.nodes[position].shape, weights, activation))
    return Layers(graph, tuple(layers))


@dataclass(frozen=True)
class Network:
    """A network's engine and graph, with its matrices, or the reason why they cannot be written out."""

    native: Native
    layers: Layers | None
    reason: str = ""

    @classmethod
    def prepare(
        cls,
        network: nn.Module | Program,
        samples: Float[Tensor, "batch *shape"],
        arithmetic: Arithmetic = Arithmetic.REAL,
    ) -> "Network":
        """Build the engine and the matrices, once per program and arithmetic.

        Raises:
            Unsupported: the native engine does not support the network.
        """
        program = Program.of(network)
        return program.once(("layers", arithmetic), lambda: cls._made(native_engine(program, samples, arithmetic)))

    @classmethod
    def _made(cls, engine: Native) -> "Network":
        try:
            return cls(engine, written_out(engine.graph))
        except Unsupported as error:
            return cls(engine, None, str(error))


def refusal(node: Node, reason: str) -> Unsupported:
    """Return the error that rejects a node, with alternatives."""
    where = node.path or "the network itself"
    return Unsupported(
        f"lipschitz: operator {node.kind!r} at {where!r} {reason}; try bound propagation (crown) or smoothing"
    )


def _check_sizes(graph: Graph, sources: Sequence[int], ends: Sequence[int]) -> None:
    for source, end in zip(sources, ends, strict=True):
        before, after = (shape_size(graph.nodes[i].shape) for i in (source, end))
        if before * after > ENTRIES:
            raise refusal(
                graph.nodes[end], f"would be a matrix of {after} x {before} entries, and {ENTRIES} are the limit"
            )


def _tangents(graph: Graph, source: int) -> dict[int, Tensor]:
    """Differentiate each node by each entry of a source, through affine operators alone, ``(entries, *shape)``."""
    shape = graph.nodes[source].shape
    size = shape_size(shape)
    found = {source: torch.eye(size, dtype=graph.like.dtype, device=graph.like.device).reshape(size, *shape)}
    for position, node in enumerate(graph.nodes):
        if position <= source or not isinstance(node.operator, Affine) or not {*node.inputs} & {*found}:
            continue
        zeros = tuple(graph.like.new_zeros((size, *graph.nodes[i].shape)) for i in node.inputs)
        inputs = tuple(found.get(i, zero) for i, zero in zip(node.inputs, zeros, strict=True))
        found[position] = node.operator.linear(*inputs)
    return found
