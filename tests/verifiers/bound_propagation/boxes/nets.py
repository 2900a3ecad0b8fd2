"""Networks, copies and cases for the tests of boxes."""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from verifiers.bound_propagation import HalfSpaces
from verifiers.bound_propagation.boxes.chains import Chain, chain_of
from verifiers.graph.affine import Dense
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.piecewise import Relu

INPUTS, CLASSES = 3, 3


def mlp(seed: int = 0, widths: tuple[int, ...] = (INPUTS, 8, 7, CLASSES)) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def noisy(network: nn.Module, size: float, seed: int = 1) -> nn.Module:
    """A copy with noise on every parameter."""
    made, generator = copy.deepcopy(network).requires_grad_(False), torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter += size * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return made


def pruned(network: nn.Module, share: float) -> nn.Module:
    """A copy without the smallest weights of each layer."""
    made = copy.deepcopy(network).requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter *= parameter.abs() > parameter.abs().flatten().quantile(share)
    return made


def values_of(count: int, outputs: int, *, inputs: bool, seed: int = 2) -> HalfSpaces:
    """Random linear functions, each a case of its own."""
    g = torch.Generator().manual_seed(seed)
    rows, slopes = (torch.randn(count, n, generator=g, dtype=torch.float64) for n in (outputs, INPUTS))
    constant = torch.randn(count, generator=g, dtype=torch.float64)
    return HalfSpaces(rows, slopes if inputs else None, constant, torch.arange(count))


def close(tolerance: float) -> HalfSpaces:
    """The outputs of two networks differ by less than a tolerance."""
    eye = torch.eye(CLASSES, dtype=torch.float64)
    rows = torch.cat([torch.cat([-eye, eye], 1), torch.cat([eye, -eye], 1)])
    constant = torch.full((2 * CLASSES,), tolerance, dtype=torch.float64)
    return HalfSpaces(rows, None, constant, torch.arange(2 * CLASSES))


def boxes_of(count: int, width: float, seed: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    low = torch.rand(count, INPUTS, generator=g, dtype=torch.float64) - 0.5
    return low, low + width * torch.rand(count, INPUTS, generator=g, dtype=torch.float64)


def points_of(low: Tensor, high: Tensor, count: int = 400, seed: int = 4) -> Tensor:
    """Points of every box, a quarter of them corners."""
    place = torch.rand(count, *low.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    place[: count // 4] = place[: count // 4].round()
    return low + (high - low) * place


def chain(widths: tuple[int, ...], seed: int, change: float = 0.0) -> Chain:
    """A chain of dense layers with float32 weights, made without a module; ``change`` is the share of noise on them."""
    g, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    nodes = [Node(None, (), (1, widths[0]), "", "image")]
    for before, after in pairwise(widths):
        weight, bias = torch.randn(after, before, generator=g) / before**0.5, torch.randn(after, generator=g) / 4
        weight = weight * (1 + change * torch.randn(weight.shape, generator=noise))
        nodes.append(Node(Dense(weight.double(), bias.double(), (1, after)), (len(nodes) - 1,), (1, after), "", ""))
        nodes.append(Node(Elementwise(Relu()), (len(nodes) - 1,), (1, after), "", ""))
    made = chain_of(Graph(nodes[:-1], torch.zeros(1, widths[0], dtype=torch.float64)))
    assert made is not None
    return made


def run(chain: Chain, x: Tensor) -> Tensor:
    """The outputs of a chain."""
    for layer in chain.layers[:-1]:
        x = (x @ layer.weight.T + layer.bias).relu()
    return x @ chain.layers[-1].weight.T + chain.layers[-1].bias
