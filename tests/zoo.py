"""Small random networks, one builder per kind, from a seed; in eval mode, in float32, from images in [0, 1]."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Kind:
    """A kind of network: its builder and the shape of its images."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]

    def network(self, seed: int = 0) -> nn.Module:
        """A network with weights drawn from the seed; torch's global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _settle(self.build())

    def images(self, count: int, seed: int = 0) -> Tensor:
        """Images in [0.1, 0.9], in float32."""
        return images(self.shape, count, seed)


def images(shape: tuple[int, ...], count: int, seed: int = 0) -> Tensor:
    """Images in [0.1, 0.9], in float32."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return 0.1 + 0.8 * torch.rand((count, *shape), generator=generator)


def _settle(network: nn.Module) -> nn.Module:
    """Eval mode; batch normalisation gets statistics and an affine part that change what passes through."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = 0.3 * torch.randn(module.num_features)
            module.running_var = 0.3 + torch.rand(module.num_features)
            module.weight = nn.Parameter(torch.randn(module.num_features))
            module.bias = nn.Parameter(0.3 * torch.randn(module.num_features))
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(1.5 * module.weight.detach())
    return network.eval()


def mlp(sizes: tuple[int, ...], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these sizes with an activation between each two."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


class Residual(nn.Module):
    """A block x + conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def normalize(mean: tuple[float, ...], std: tuple[float, ...]) -> nn.Conv2d:
    """(x - mean) / std as a depthwise 1x1 convolution with fixed weights."""
    layer = nn.Conv2d(len(mean), len(mean), 1, groups=len(mean))
    scale = 1 / torch.tensor(std)
    layer.weight = nn.Parameter(scale.reshape(-1, 1, 1, 1))
    layer.bias = nn.Parameter(-torch.tensor(mean) * scale)
    return layer.requires_grad_(False)


def _conv(activation: nn.Module, *tail: nn.Module, channels: int = 4, side: int = 3) -> nn.Sequential:
    """A 6x6 image with 2 channels, one convolution, an activation, the tail and a linear layer."""
    head = [nn.Conv2d(2, channels, 3, stride=2, padding=1), activation]
    return nn.Sequential(*head, *tail, nn.Flatten(), nn.Linear(channels * side * side, 3))


def _groups() -> nn.Module:
    body = [nn.Conv2d(2, 4, 3, stride=(2, 1), padding=(1, 0), groups=2), nn.ReLU(), nn.Conv2d(4, 4, (2, 1), groups=4)]
    return nn.Sequential(*body, nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))


def _average_pool() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def _max_pool() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def _global_average() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


def _dropout() -> nn.Module:
    shared = nn.Dropout(0.5)
    body = [nn.Flatten(), nn.Linear(6, 10), nn.ReLU(), shared, nn.Linear(10, 10), nn.ReLU(), shared, nn.Linear(10, 3)]
    return nn.Sequential(*body)


def _batch_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


_IMAGE = (2, 6, 6)

ZOO: tuple[Kind, ...] = (
    Kind("linear", lambda: mlp((6, 3)), (6,)),
    Kind("mlp", lambda: mlp((6, 12, 3)), (6,)),
    Kind("deep mlp", lambda: mlp((6, 10, 10, 10, 4)), (1, 2, 3)),
    Kind("cnn", lambda: _conv(nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()), _IMAGE),
    Kind("grouped cnn", _groups, _IMAGE),
    Kind("residual", lambda: _conv(nn.ReLU(), Residual(4)), _IMAGE),
    Kind("average pool", _average_pool, _IMAGE),
    Kind("max pool", _max_pool, _IMAGE),
    Kind("global average", _global_average, _IMAGE),
    Kind("batch norm", _batch_norm, _IMAGE),
    Kind("dropout", _dropout, (6,)),
    Kind("normalized", lambda: nn.Sequential(normalize((0.5, 0.3), (0.2, 0.3)), *_conv(nn.ReLU())), _IMAGE),
    Kind("tanh", lambda: mlp((6, 10, 10, 3), nn.Tanh), (6,)),
    Kind("sigmoid", lambda: mlp((6, 10, 3), nn.Sigmoid), (6,)),
    Kind("leaky", lambda: mlp((6, 10, 10, 3), lambda: nn.LeakyReLU(0.1)), (6,)),
    Kind("silu", lambda: mlp((6, 8, 3), nn.SiLU), (6,)),
    Kind("silu cnn", lambda: _conv(nn.SiLU()), _IMAGE),
)

BY_NAME = {kind.name: kind for kind in ZOO}


class Planted(nn.Module):
    """Two classes; class 0 wins by 1 but within ``width`` (l1) of a hidden point, where class 1 wins by 1.

    Away from the hidden point the network is constant, so neither gradients nor random points betray it.
    """

    def __init__(self, hidden: Tensor, width: float = 0.01) -> None:
        super().__init__()
        pixels = hidden.numel()
        self.distance = nn.Linear(pixels, 2 * pixels)
        self.bump = nn.Linear(2 * pixels, 1)
        self.logits = nn.Linear(1, 2)
        eye = torch.eye(pixels)
        with torch.no_grad():
            self.distance.weight.copy_(torch.cat([eye, -eye]))
            self.distance.bias.copy_(torch.cat([-hidden, hidden]))
            self.bump.weight.fill_(-1 / width)
            self.bump.bias.fill_(1.0)
            self.logits.weight.copy_(torch.tensor([[0.0], [2.0]]))
            self.logits.bias.copy_(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(torch.relu(self.bump(torch.relu(self.distance(x)))))


def planted(pixels: int, reach: float, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with a hidden counterexample, an image, and the counterexample at linf distance ``reach`` from it."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.4 + 0.2 * torch.rand((1, pixels), generator=generator)
    hidden = x[0] + reach * (torch.rand(pixels, generator=generator) * 2 - 1)
    hidden[0] = x[0, 0] + reach
    return Planted(hidden).eval(), x, hidden
