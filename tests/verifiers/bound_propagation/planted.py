"""Pairs of networks with a disagreement planted at a known point of the ball, too narrow to be met by chance."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from tests.verifiers.bound_propagation.pairs import CLASSES, Tiny, network
from verifiers.core.relation import Property, Relation


class Planted(NamedTuple):
    """A pair, and a point of its ball."""

    pair: Tiny
    point: Tensor


class Added(nn.Module):
    """A network with a function of one value added to one logit."""

    def __init__(self, net: nn.Module, function: nn.Module, j: int) -> None:
        super().__init__()
        self.net, self.function, self.place = net, function, nn.Linear(1, CLASSES, bias=False)
        with torch.no_grad():
            self.place.weight.copy_(torch.eye(CLASSES)[:, j : j + 1])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.place(self.function(x))


def dense(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def hats(w: Tensor, t: Tensor, width: float, height: float) -> nn.Sequential:
    """A hat of a height at ``w @ x = t``, of three ReLUs."""
    bias = torch.tensor([width, 0.0, -width]) - t
    last = dense(torch.tensor([[1.0, -2.0, 1.0]]) * height / width, torch.zeros(1))
    return nn.Sequential(dense(w.expand(3, -1), bias), nn.ReLU(), last)


def ridge(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """A hat across a random direction."""
    w = torch.from_numpy(rng.normal(size=(1, len(point)))).float()
    return hats(w, w[0] @ point, width, 6.0)


def spike(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """relu(1 - the l1 distance / width): a hat in all directions at once, by two layers."""
    eye = torch.eye(len(point)) / width
    first = dense(torch.cat([eye, -eye]), torch.cat([-point, point]) / width)
    tip = dense(-torch.ones(1, 2 * len(point)), torch.ones(1))
    return nn.Sequential(first, nn.ReLU(), tip, nn.ReLU(), dense(torch.full((1, 1), 6.0), torch.zeros(1)))


def edge(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """A ramp that begins a width before the ball's corner at the point."""
    sign = (point - 0.5).sign()[None]
    ramp = dense(sign, width - sign @ point)
    return nn.Sequential(ramp, nn.ReLU(), dense(torch.full((1, 1), 6.0 / width), torch.zeros(1)))


def sigmoids(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """The difference of two steep sigmoids: a plateau."""
    w = torch.from_numpy(rng.normal(size=(2, len(point)))).float()[:1].repeat(2, 1) * 8 / width
    steps = dense(w, -w @ point + torch.tensor([8.0, -8.0]))
    return nn.Sequential(steps, nn.Sigmoid(), dense(torch.tensor([[6.0, -6.0]]), torch.zeros(1)))


def saw(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """A tooth of a folded line: |.| of |.| of |.|, then the tip alone."""
    w = torch.from_numpy(rng.normal(size=(1, len(point)))).float()
    layers: list[nn.Module] = [dense(w, -w @ point)]
    for fold in (8, 4, 2):  # 0 at the point becomes 8, 4 and 2 widths
        both = dense(torch.tensor([[1.0], [-1.0]]), torch.zeros(2))
        layers += [both, nn.ReLU(), dense(torch.ones(1, 2), torch.tensor([-fold * width]))]
    tip = dense(torch.ones(1, 1), torch.tensor([-width]))
    return nn.Sequential(*layers, tip, nn.ReLU(), dense(torch.full((1, 1), 6.0 / width), torch.zeros(1)))


def absorbed(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """A value of 0 over the real numbers, that float32 leaves as the rounding of x + 2^16."""
    one = torch.eye(len(point))[:1]
    first = dense(one.repeat(2, 1), torch.tensor([2.0**16, 0.0]))
    back = dense(torch.eye(2), torch.tensor([-(2.0**16), 0.0]))
    size = 6.0 * 2.0**8
    return nn.Sequential(first, nn.ReLU(), back, nn.ReLU(), dense(torch.tensor([[size, -size]]), torch.zeros(1)))


def overflowing(point: Tensor, width: float, rng: np.random.Generator) -> nn.Module:
    """A ramp at the ball's corner whose size float32 does not have."""
    sign = (point - 0.5).sign()[None]
    ramp = dense(sign, width - sign @ point)
    large = dense(torch.full((1, 1), 1e38), torch.zeros(1))
    return nn.Sequential(ramp, nn.ReLU(), large, nn.ReLU(), dense(torch.full((1, 1), 1e10 / width), torch.zeros(1)))


#: What is planted, at a point of the ball or at its corner.
KINDS: dict[str, tuple[Callable[[Tensor, float, np.random.Generator], nn.Module], bool]] = {
    "ridge": (ridge, False),
    "spike": (spike, False),
    "edge": (edge, True),
    "sigmoids": (sigmoids, False),
    "saw": (saw, False),
    "absorbed": (absorbed, False),
    "overflowing": (overflowing, True),
}


def without(function: nn.Module) -> nn.Module:
    """Copy a function with a last layer of 0: the two networks are copies."""
    flat = copy.deepcopy(function)
    with torch.no_grad():
        for parameter in list(flat.parameters())[-2:]:
            parameter.zero_()
    return flat


def planted(kind: str, seed: int) -> Planted:
    """Make a pair of which both networks prefer class 0 on the ball, but for what is planted.

    Args:
        kind: of ``KINDS``.
        seed: of the networks and of the place; with even ones the teacher has a neuron for each of the student's.
    """
    rng = np.random.default_rng(seed)
    inputs, width = int(rng.integers(2, 5)), float(10 ** rng.uniform(-5, -2))
    base = network(rng, inputs, [int(n) for n in rng.integers(3, 6, rng.integers(1, 3))])
    with torch.no_grad():
        base[-1].weight.mul_(0.2)
        base[-1].bias.copy_(torch.tensor([2.0, 0.0, 0.0]))
    eps = float(rng.choice([0.02, 0.05, 0.1]))
    x = torch.from_numpy(rng.uniform(0.2, 0.8, inputs)).float()
    build, corner = KINDS[kind]
    away = np.where(x.numpy() > 0.5, 1.0, -1.0) if corner else rng.uniform(-0.9, 0.9, inputs)
    point = x + torch.from_numpy(away).float() * eps
    while corner and float((point.double() - x.double()).abs().max()) > eps:
        point = point.where((point.double() - x.double()).abs() <= eps, torch.nextafter(point, x))
    if kind == "absorbed":  # the largest rounding among points nearby
        point = point.repeat(4096, 1)
        point[:, 0] += torch.linspace(-eps / 20, eps / 20, 4096)
        point = point[build(point[0], width, rng)(point)[:, 0].argmax()]
    student = Added(base, build(point, width, rng), int(rng.integers(1, CLASSES)))
    teacher = base if seed % 2 else Added(base, without(student.function), 1)
    return Planted(Tiny(student.eval(), teacher.eval(), x[None], eps), point)  # type: ignore[arg-type]


#: The properties that what is planted breaks.
BROKEN = (Relation(), Relation(Property.CLOSE, 0.5), Relation(Property.NOT_WORSE, 0.5), Relation(Property.TRANSFER))
