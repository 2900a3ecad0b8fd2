"""Three networks on upsampled digits, adversarially trained, as users certify them: an MLP, a CNN and a ResNet."""

from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

TRAINING = 1400


class Case(NamedTuple):
    """A network in eval mode, test images and the radius it is certified at."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    eps: float


class Block(nn.Module):
    """relu(x + conv(relu(conv(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def _mlp() -> nn.Module:
    hidden = [layer for _ in range(2) for layer in (nn.Linear(100, 100), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), *hidden, nn.Linear(100, 10))


def _cnn() -> nn.Module:
    convolutions = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


def _resnet() -> nn.Module:
    stages = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), Block(8), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), Block(16)]
    return nn.Sequential(*stages, nn.Flatten(), nn.Linear(1024, 100), nn.ReLU(), nn.Linear(100, 10))


NETS = {
    "mlp": (_mlp, (1, 28, 28), 0.03),
    "cnn": (_cnn, (1, 28, 28), 0.03),
    "resnet": (_resnet, (3, 32, 32), 2 / 255),
}


def case(name: str, epochs: int = 30) -> Case:
    """Train a network against single-step attacks of four times its eps; the same one for every call."""
    make, shape, eps = NETS[name]
    torch.manual_seed(0)
    network, digits = make(), load_digits()
    images = torch.tensor(digits.images / 16).float()[:, None]
    images = F.interpolate(images, shape[1:], mode="bilinear").expand(-1, shape[0], -1, -1).contiguous()
    labels = torch.tensor(digits.target)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3, weight_decay=1e-4)
    for _ in range(epochs):
        for rows in torch.randperm(TRAINING).split(64):
            attacked = _attack(network, images[rows], labels[rows], 4 * eps)
            optimizer.zero_grad()
            F.cross_entropy(network(attacked), labels[rows]).backward()
            optimizer.step()
    return Case(network.eval().requires_grad_(False), images[TRAINING:], labels[TRAINING:], eps)


def _attack(network: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    start = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(start), y), start)
    return (start.detach() + 1.25 * eps * gradient.sign()).clamp(x - eps, x + eps).clamp(0, 1)
