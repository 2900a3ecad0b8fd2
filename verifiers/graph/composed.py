"""Compose affine layers without an activation between them, so that a low-rank copy has its original's neurons.

A product of linear layers is one linear map. Float32 computes it in parts, so its error is that of all parts.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from verifiers.graph.affine import Convolution, Dense
from verifiers.graph.graph import Graph, Node


class Product:
    """Mixed into the composed operators: the error of their parts, one after the other.

    Attributes:
        layers: the class of its parts, and of the one layer that it stands for.
    """

    layers: type[Dense | Convolution]
    parts: Sequence[Dense | Convolution]

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """The error of each part on values as far off as the parts before it make them, and what it makes of that."""
        size, error = sizes[0], torch.zeros_like(sizes[0])
        for part in self.parts:
            moved = part.half_width(error).nan_to_num(torch.inf, torch.inf)  # no weight times an infinite error
            error = moved + part.error([size + error], after)
            size = _largest(part, size)
        return error


class ComposedDense(Product, Dense):
    """A product of linear layers, as one."""

    layers = Dense

    def __init__(self, first: Dense, last: Dense) -> None:
        bias = first.bias
        shift = last.bias if bias is None else _sum(last.weight @ bias, last.bias)
        super().__init__(last.weight @ first.weight, shift, last.after)
        self.parts = [*_parts(first), *_parts(last)]


class ComposedConvolution(Product, Convolution):
    """A product of convolutions, as one."""

    layers = Convolution

    def __init__(self, first: Convolution, last: Convolution) -> None:
        one, two = (_whole(each) for each in (first, last))
        # along each axis one of both kernels has one entry, so the other one is that of the product
        weight = torch.einsum("omab,micd->oiacbd", two, one)
        shape = weight.shape
        weight = weight.reshape(shape[0], shape[1], shape[2] * shape[3], shape[4] * shape[5])
        bias = last.bias if first.bias is None else _sum(two.sum((2, 3)) @ first.bias, last.bias)
        sides = [first if _plain(last, axis) else last for axis in (0, 1)]
        stride, padding, dilation = (
            (getattr(sides[0], name)[0], getattr(sides[1], name)[1]) for name in ("stride", "padding", "dilation")
        )
        super().__init__(weight, bias, stride, padding, dilation, 1, before=first.before, after=last.after)
        self.parts = [*_parts(first), *_parts(last)]


def _parts(operator: Dense | Convolution) -> Sequence[Dense | Convolution]:
    return operator.parts if isinstance(operator, Product) else [operator]


def _sum(one: Tensor, other: Tensor | None) -> Tensor:
    return one if other is None else one + other


def _largest(part: Dense | Convolution, size: Tensor) -> Tensor:
    """Bound the magnitude of a part's exact values."""
    found = part.half_width(size)
    if part.bias is None:
        return found
    return found + (part.bias.abs()[:, None, None] if isinstance(part, Convolution) else part.bias.abs())


def _whole(operator: Convolution) -> Tensor:
    """Return the weight of a convolution as one of a single group, with zeros between groups."""
    weight, groups = operator.weight, operator.groups
    if groups == 1:
        return weight
    out, inner = len(weight) // groups, weight.shape[1]
    made = weight.new_zeros(len(weight), groups * inner, *weight.shape[2:])
    for g in range(groups):
        made[g * out : (g + 1) * out, g * inner : (g + 1) * inner] = weight[g * out : (g + 1) * out]
    return made


def _plain(operator: Convolution, axis: int) -> bool:
    """Tell whether a convolution does nothing along an axis."""
    return (operator.weight.shape[axis + 2], operator.stride[axis], operator.padding[axis]) == (1, 1, 0)


def _fit(first: object, last: object) -> bool:
    """Tell whether two operators compose: linear layers, or convolutions of which one is plain along each axis.

    Padding adds zeros behind the first one, so a bias of the first one must not meet it. Layers with an error in
    their own constants stay apart, with that error.
    """
    if getattr(first, "perturbation", None) is not None or getattr(last, "perturbation", None) is not None:
        return False
    kinds = (Dense, ComposedDense), (Convolution, ComposedConvolution)
    if type(first) in kinds[0] and type(last) in kinds[0]:
        return True
    if not (isinstance(first, Convolution) and isinstance(last, Convolution)):
        return False
    if type(first) not in kinds[1] or type(last) not in kinds[1]:
        return False
    unpadded = first.bias is None or last.padding == (0, 0)
    return unpadded and all(_plain(first, axis) or _plain(last, axis) for axis in (0, 1))


def composed(graph: Graph) -> Graph:
    """Return a graph in which neighbouring affine layers are one; other nodes stay."""
    users = [0] * len(graph.nodes)
    for node in graph.nodes:
        for i in node.inputs:
            users[i] += 1
    places: dict[int, int] = {0: 0}
    nodes: list[Node] = [graph.nodes[0]]
    for position, node in enumerate(graph.nodes[1:], 1):
        inputs = tuple(places[i] for i in node.inputs)
        kept = nodes[-1]
        alone = inputs == (len(nodes) - 1,) and users[node.inputs[0]] == 1
        if alone and _fit(kept.operator, node.operator):
            nodes[-1] = replace(node, operator=_product(kept.operator, node.operator), inputs=kept.inputs)
        else:
            nodes.append(replace(node, inputs=inputs))
        places[position] = len(nodes) - 1
    return Graph(nodes, graph.like)


def _product(first: object, last: object) -> Dense | Convolution:
    if isinstance(first, Convolution):
        assert isinstance(last, Convolution)
        return ComposedConvolution(first, last)
    assert isinstance(first, Dense) and isinstance(last, Dense)
    return ComposedDense(first, last)
