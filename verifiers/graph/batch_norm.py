"""Batch normalisation with fixed statistics: an affine operator that float32 computes in several ways."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.graph.affine import Convolution, Dense, Scale
from verifiers.graph.graph import Node
from verifiers.graph.operators import Operator
from verifiers.graph.rounding import LARGEST, NORMAL, accumulated
from verifiers.graph.rows import Shape

#: Roundings of a term: eps, its sum with the variance, the root and the reciprocal (4 ulp each at most), three products
#: and two sums. This many cover them in any of the forms below.
STEPS = 24


class BatchNorm(Scale):
    """(x - mean) / sqrt(var + eps) weight + bias, one value of each per channel, the second axis.

    Its error holds for (x - mean) invstd weight + bias, as CUDA and cuDNN compute it, and for x alpha + beta with
    alpha = invstd weight and beta = bias - mean alpha rounded before, as torch computes it on CPUs.
    """

    def __init__(
        self,
        weight: Float[Tensor, " channels"] | None,
        bias: Float[Tensor, " channels"] | None,
        mean: Float[Tensor, " channels"],
        var: Float[Tensor, " channels"],
        eps: float,
        shape: Shape,
    ) -> None:
        tail = (1,) * (len(shape) - 2)

        def channels(value: Tensor | None, fill: float) -> Tensor:
            return (torch.full_like(mean, fill) if value is None else value).reshape(-1, *tail)

        self.weight, self.bias = channels(weight, 1.0), channels(bias, 0.0)
        self.mean, self.variance = channels(mean, 0.0), channels(var + eps, 1.0)
        scale = self.variance.rsqrt() * self.weight
        super().__init__(scale, self.bias - self.mean * scale, shape)

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(24) ((|x| + |mean|) |scale| + |bias|); infinite where var + eps is subnormal.

        What underflows before the last product is multiplied by |x|, |mean| or |weight| afterwards.
        """
        moved = sizes[0] + self.mean.abs()
        size = moved * self.scale.abs() + self.bias.abs()
        tiny = STEPS * (1 + moved + self.weight.abs())
        largest = moved * self.variance.rsqrt().clamp_min(1.0)
        usable = (self.variance >= NORMAL) & (largest <= LARGEST / 2)
        return torch.where(usable, accumulated(size, STEPS, tiny=tiny), torch.inf)


def folded(nodes: Sequence[Node]) -> list[Node]:
    """Fold each batch normalisation into the layer before it, where nothing else reads that layer.

    The nodes compute the same function over the real numbers, with other roundings: for bounds that certify nothing.
    """
    uses = Counter(i for node in nodes for i in node.inputs)
    made: list[Node] = []
    place: list[int] = []
    for node in nodes:
        before = place[node.inputs[0]] if node.inputs else -1
        layer = None
        if isinstance(node.operator, BatchNorm) and uses[node.inputs[0]] == 1:
            layer = _scaled(made[before].operator, node.operator)
        if layer is None:
            inputs = tuple(place[i] for i in node.inputs)
            made.append(node if inputs == node.inputs else replace(node, inputs=inputs))
            place.append(len(made) - 1)
        else:
            made[before] = replace(made[before], operator=layer)
            place.append(before)
    return made[: place[-1] + 1]


def _scaled(layer: Operator | None, norm: BatchNorm) -> Operator | None:
    """Return a layer with its outputs normalised; None if that is not one layer."""
    scale = norm.scale.flatten()
    shift = norm.bias.flatten() - norm.mean.flatten() * scale
    if type(layer) is Dense and len(norm.shape) == 2:
        bias = shift if layer.bias is None else layer.bias * scale + shift
        return Dense(layer.weight * scale[:, None], bias, layer.after)
    if type(layer) is Convolution:
        bias = shift if layer.bias is None else layer.bias * scale + shift
        weight = layer.weight * scale[:, None, None, None]
        form = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.before, layer.after)
        return Convolution(weight, bias, *form)
    return None
