"""Small networks under attack, and the balls around their images."""

import torch
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.search import Victims
from verifiers.geometry.balls import Balls

EPS = {Norm.LINF: 0.1, Norm.L2: 0.25, Norm.L1: 0.6}


def perceptron(classes: int = 5, pixels: int = 12, seed: int = 0) -> nn.Sequential:
    """A random network of three layers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, classes)
        )
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(2.0)
    return network.eval().requires_grad_(False)


def pictures(count: int = 8, shape: tuple[int, ...] = (1, 3, 4), seed: int = 1) -> Tensor:
    """Random images; some pixels are black or white."""
    x = torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed))
    x.flatten(1)[::2, 0], x.flatten(1)[1::2, 1] = 0.0, 1.0
    return x


def victims(
    network: nn.Module, x: Tensor, norm: Norm = Norm.LINF, eps: float | None = None, indices: list[int] | None = None
) -> Victims:
    """The images with the network's own classes."""
    balls = Balls.around(x, EPS[norm] if eps is None else eps, norm)
    with torch.no_grad():
        own = network(x).argmax(1)
    return Victims(network, balls, own, list(range(len(x))) if indices is None else indices)


class Slope(nn.Module):
    """Two classes: the other one wins where a linear function of the image is above its threshold."""

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.weight, self.threshold = nn.Parameter(weight, requires_grad=False), threshold

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.weight - self.threshold
        return torch.stack([-score, score], 1)


class Staircase(nn.Module):
    """The same with pixels rounded to quarters, so that no gradient reaches the image."""

    def __init__(self, weight: Tensor, threshold: float) -> None:
        super().__init__()
        self.slope = Slope(weight, threshold)

    def forward(self, x: Tensor) -> Tensor:
        return self.slope((4 * x).round() / 4)


def hidden() -> Staircase:
    """Ten pixels, of which nearly all have to reach a corner of their ball of 0.2 around 0.4, without a gradient."""
    return Staircase(torch.tensor([1.0, -1.0] * 5), 1.1)
