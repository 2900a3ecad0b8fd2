"""A network of layers that cannot enlarge distances, by almost orthogonal weights."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Keeps the root of a column of zeros finite; it only makes layers smaller.
_SMALLEST = 1e-12


class AlmostOrthogonal(nn.Module):
    """x -> P x + b, with P = W diag(d), d_j = (sum_k |W^T W|_jk)^(-1/2): || P ||_2 <= 1 for every W.

    Proof: diag(d)^(-2) - W^T W is symmetric and diagonally dominant with a diagonal that is not negative, so it is
    positive semidefinite. Where the columns of W are orthogonal, those of P have length 1. At first each column has one
    entry, 1 or -1, in a random row: no length is lost where ``after`` is at least ``before``.

    Source: Prach and Lampert, arXiv 2208.03160.
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        signs = 2.0 * torch.randint(2, (before,)) - 1
        columns = torch.zeros(after, before).scatter_(0, torch.randperm(before)[None] % after, signs[None])
        self.weight = nn.Parameter(columns)
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: Float[Tensor, "batch before"]) -> Float[Tensor, "batch after"]:
        sums = (self.weight.T @ self.weight).abs().sum(0)
        return nn.functional.linear(x, self.weight * (sums + _SMALLEST).rsqrt(), self.bias)


class Absolute(nn.Module):
    """|x|: unlike ReLU it keeps the length of gradients."""

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        return x.abs()


class Scaled(nn.Module):
    """A constant times x."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Float[Tensor, "batch classes"]) -> Float[Tensor, "batch classes"]:
        return x * self.scale


def aol(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (64, 64), scale: float = 16) -> nn.Module:
    """Build a perceptron that is 1-Lipschitz in l2, up to ``scale``, with absolute values as activations.

    A margin changes by at most sqrt(2) scale times the length of a disturbance, for any weights: the margin of an image
    over sqrt(2) scale is a radius, which the method ``lipschitz`` proves for the network as it runs. The scale changes
    no radius; it makes the logits as large as a loss needs them. A normalisation in front would enlarge distances by
    1 / std: build the network without it.

    Args:
        shape: shape of one image, e.g. (1, 8, 8).
        classes: number of logits.
        hidden: width of each hidden layer.
        scale: factor of the logits, more than 0.
    """
    widths = [int(torch.Size(shape).numel()), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [AlmostOrthogonal(before, after), Absolute()]
    return nn.Sequential(*layers, AlmostOrthogonal(widths[-1], classes), Scaled(scale))
