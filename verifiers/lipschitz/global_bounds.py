"""Bound Lipschitz constants of differences of logits over all images, for Euclidean distances; in logits per pixel.

There are four methods. ``product`` multiplies norms along the operators of a graph and handles the largest networks.
The others need the matrices: LipLT allows slopes of any sign; ECLipsE-Fast and LipSDP-Neuron need a chain and slopes
in [0, b]. Those two are in ``chains``. Everything is computed in double precision; each function documents how its
bound covers rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.core.errors import Unsupported
from verifiers.graph.affine import Affine, Convolution, Dense, Scale
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.max_pool import MaxPool
from verifiers.graph.relaxations.normalization import Normalization
from verifiers.graph.relaxations.slopes import slopes
from verifiers.graph.relaxations.softmax import Softmax
from verifiers.graph.rows import Rows, shape_size
from verifiers.lipschitz.chains import eclipse_fast, lipsdp
from verifiers.lipschitz.jacobians import SlopeRanges, liplt
from verifiers.lipschitz.layers import Layers, refusal
from verifiers.lipschitz.operator_norms import affine_norm, max_pool_constant

#: Covers the rounding of a constant in double precision.
INFLATION = 1 + 1e-6
#: Pairs of classes per batch.
PAIRS = 4096


@dataclass(frozen=True)
class GlobalBounds:
    """Constants of logit i minus logit j, symmetric with a zero diagonal.

    Attributes:
        classes: the number of logits.
        values: by method, each a proved upper bound; inf if it overflowed.
        reasons: by method that was left out, the reason.
    """

    classes: int
    values: dict[str, Float[Tensor, "classes classes"]]
    reasons: dict[str, str]

    @cached_property
    def best(self) -> Float[Tensor, "classes classes"]:
        """The smallest of the bounds; inf (with a zero diagonal) if no method gave one."""
        if self.values:
            return torch.stack(list(self.values.values())).amin(0)
        nothing = torch.full((self.classes, self.classes), float("inf"), dtype=torch.float64)
        return nothing.fill_diagonal_(0.0)


def global_bounds(graph: Graph, layers: Layers | None, tight: bool) -> GlobalBounds:
    """Bound the constants by every method that supports the network.

    Args:
        graph: the network.
        layers: its matrices; None leaves ``product`` alone.
        tight: use LipSDP as well.
    """
    methods: dict[str, Callable[[], Tensor]] = {"product": lambda: product(graph)}
    if layers is not None:
        methods["liplt"] = lambda: liplt_pairs(layers)
        methods["eclipse-fast"] = lambda: by_chain(layers, eclipse_fast)
        if tight:
            methods["lipsdp"] = lambda: by_chain(layers, lipsdp)
    values, reasons = {}, {}
    for name, method in methods.items():
        try:
            with torch.no_grad():
                values[name] = (method() * INFLATION).nan_to_num(nan=float("inf"), posinf=float("inf"))
        except Unsupported as error:
            reasons[name] = str(error)
    return GlobalBounds(graph.classes, values, reasons)


def by_chain(layers: Layers, bound: Callable[[Sequence[Tensor], Tensor], Tensor]) -> Float[Tensor, "classes classes"]:
    """Bound the constants of all pairs by a bound of chains.

    Raises:
        Unsupported: the network is not a chain with slopes in [0, b].
    """
    chain = chain_form(layers)
    return by_pairs(layers.graph, lambda rows: bound(chain, rows))


def by_pairs(graph: Graph, bound: Callable[[Float[Tensor, "pairs 1 classes"]], Tensor]) -> Tensor:
    """Apply a bound of rows to all pairs, ``PAIRS`` at a time; returns ``(classes, classes)``."""
    parts = _pairs(graph.classes, graph.like).split(PAIRS, dim=1)
    return over_pairs(torch.cat([bound(pair_rows(graph.classes, graph.like, part)) for part in parts]), graph.classes)


def _pairs(classes: int, like: Tensor) -> Int[Tensor, "2 pairs"]:
    return torch.triu_indices(classes, classes, 1, device=like.device)


def pair_rows(
    classes: int, like: Tensor, pairs: Int[Tensor, "2 pairs"] | None = None
) -> Float[Tensor, "pairs 1 classes"]:
    """Return e_i - e_j for the given pairs, or for every pair i < j."""
    first, second = _pairs(classes, like) if pairs is None else pairs
    unit = torch.eye(classes, dtype=torch.float64, device=like.device)
    return (unit[first] - unit[second])[:, None, :]


def over_pairs(values: Float[Tensor, " pairs"], classes: int) -> Float[Tensor, "classes classes"]:
    """Arrange the values of the pairs i < j as a symmetric matrix."""
    first, second = _pairs(classes, values)
    found = values.new_zeros(classes, classes)
    found[first, second] = values
    return found + found.T


# Products of norms


def product(graph: Graph) -> Float[Tensor, "classes classes"]:
    """Bound the constants of all pairs by products (for sums: sums) of the operators' constants.

    The affine operators at the end are merged with the pair, and a factor per channel with the convolution before it.

    Raises:
        Unsupported: an operator has no constant that holds for all its inputs; the message names it.
    """
    start, features = _merged_tail(graph)
    norms = [torch.linalg.vector_norm(features - one, dim=1) for one in features]  # not all pairs at once
    return torch.stack(norms) * _walk(graph, start)


def _merged_tail(graph: Graph) -> tuple[int, Float[Tensor, "classes entries"]]:
    """Return the last node that is not affine in one input, and the logits' coefficients of its entries."""
    position = graph.output
    shape = graph.nodes[position].shape
    if shape_size(shape) != graph.classes:
        raise refusal(graph.nodes[position], f"gives logits of shape {shape}, not one for each class")
    values = torch.eye(graph.classes, dtype=graph.like.dtype, device=graph.like.device).reshape(-1, *shape)
    while isinstance(operator := graph.nodes[position].operator, Affine) and len(graph.nodes[position].inputs) == 1:
        samples = torch.zeros(len(values), dtype=torch.long, device=values.device)
        pushed = operator.push(Rows(values), samples).inputs[0]
        position = graph.nodes[position].inputs[0]
        assert pushed is not None
        values = pushed.dense(graph.nodes[position].shape).values
    return position, values.flatten(1)


def _walk(graph: Graph, end: int) -> float:
    """Bound the Lipschitz constant of a node's value as a function of the image."""
    nodes = [_with_scale(graph, node) for node in graph.nodes[: end + 1]]
    needed = {end}
    for position in range(end, 0, -1):
        if position in needed:
            needed.update(nodes[position].inputs)
    known = {0: 1.0}
    for position in sorted(needed - {0}):
        node = nodes[position]
        factors = _factors(graph, node)
        known[position] = sum(factor * known[i] for factor, i in zip(factors, node.inputs, strict=True))
    return known[end]


def check_constants(graph: Graph) -> None:
    """Reject an operator without a constant, before any norm is computed.

    Raises:
        Unsupported: an operator has no constant; the message names it.
    """
    for node in graph.nodes[1:]:
        if not isinstance(node.operator, Affine):
            _factors(graph, node)


def _factors(graph: Graph, node: Node) -> list[float]:
    """Bound the Lipschitz constant of an operator in each of its inputs."""
    operator = node.operator
    if isinstance(operator, Affine):
        shapes = [graph.nodes[i].shape for i in node.inputs]
        return [affine_norm(operator, shapes, position, graph.like) for position in range(len(shapes))]
    if isinstance(operator, Elementwise):
        low, high = _slopes_anywhere(graph, node, operator)
        return [float(torch.maximum(low.abs(), high.abs()).max())]
    if isinstance(operator, MaxPool):
        kernel, stride, _, dilation, _ = operator.arguments
        return [max_pool_constant(kernel, stride, dilation)]
    if isinstance(operator, Softmax):
        return [0.5]
    if isinstance(operator, Normalization) and operator.eps > 0:
        return [operator.eps**-0.5]
    raise refusal(node, "has no Lipschitz constant that holds for all its inputs")


def _slopes_anywhere(graph: Graph, node: Node, operator: Elementwise) -> tuple[Tensor, Tensor]:
    end = torch.full((1, *node.shape), float("inf"), dtype=graph.like.dtype, device=graph.like.device)
    try:
        low, high = slopes(operator.activation, -end, end)
    except Unsupported as error:
        raise refusal(node, "has no bound of its slope over all numbers") from error
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise refusal(node, "has no bound of its slope over all numbers")
    return low, high


def _with_scale(graph: Graph, node: Node) -> Node:
    """Merge a factor per channel with the convolution or dense layer before it, into one operator on its input."""
    if not isinstance(node.operator, Scale):
        return node
    before, scale = graph.nodes[node.inputs[0]], node.operator.scale
    operator = before.operator
    if isinstance(operator, Convolution) and scale.shape[:-3].numel() * scale.shape[-2:].numel() == 1:
        weight = operator.weight * scale.reshape(-1, 1, 1, 1)
        geometry = (operator.stride, operator.padding, operator.dilation, operator.groups)
        merged: Affine = Convolution(weight, None, *geometry, operator.before, operator.after)
    elif isinstance(operator, Dense) and scale.shape[:-1].numel() == 1:
        merged = Dense(operator.weight * scale.reshape(-1, 1), None, operator.after)
    else:
        return node
    return Node(merged, before.inputs, node.shape, before.path, before.kind)


# Bounds by the matrices


def liplt_pairs(layers: Layers) -> Float[Tensor, "classes classes"]:
    """Bound the constants of all pairs by LipLT, for slopes of any sign.

    Raises:
        Unsupported: the slope of an activation has no bound; the message names it.
    """
    ranges = _ranges(layers)
    return by_pairs(layers.graph, lambda rows: liplt(ranges, rows[None, :, 0])[0])


def _ranges(layers: Layers) -> SlopeRanges:
    for node in layers.graph.nodes:
        if isinstance(node.operator, Elementwise):
            _slopes_anywhere(layers.graph, node, node.operator)
    return SlopeRanges.anywhere(layers)


def chain_form(layers: Layers) -> list[Float[Tensor, "_ _"]]:
    """Return the chain with slopes in [0, 1] and the same Jacobians, W_1, ..., W_L+1: b_k W_k+1 for slopes in [0, b_k].

    Raises:
        Unsupported: a layer reads more than the one before it, or an activation can decrease. For slopes in [a, b]
            with a < 0 the statement has a further term, without which a constant would be too small.
    """
    if layers.chain is None:
        raise Unsupported("lipschitz: no chain: a layer reads layers other than the one before it; LipLT supports that")
    ranges = _ranges(layers)
    for layer, low in zip(layers.hidden, ranges.low, strict=True):
        if bool((low < 0).any()):
            node = next(
                n
                for n in layers.graph.nodes
                if n.inputs[:1] == (layer.position,) and isinstance(n.operator, Elementwise)
            )
            raise refusal(node, f"has slopes down to {float(low.min()):.6g}, below 0, which only LipLT supports")
    return [layers.chain[0], *(w * high[0] for w, high in zip(layers.chain[1:], ranges.high, strict=True))]
