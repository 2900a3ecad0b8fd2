"""certkd's own networks: small, and made of layers that every certificate method supports."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn


def mlp(shape: Sequence[int], classes: int, *, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """Build a ReLU perceptron on the flattened image.

    Args:
        shape: shape of one image, e.g. (1, 8, 8).
        classes: number of logits.
        hidden: width of each hidden layer.
    """
    widths = [int(torch.Size(shape).numel()), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def cnn(shape: Sequence[int], classes: int, *, width: int = 16, hidden: int = 100) -> nn.Module:
    """Build two 4x4 convolutions of stride 2 and two dense layers, the usual small network in verification.

    Args:
        shape: (channels, height, width) of one image, at least 4x4.
        classes: number of logits.
        width: channels of the first convolution; the second has twice as many.
        hidden: width of the dense layer.

    Raises:
        ValueError: the images are smaller.
    """
    channels, height, breadth = shape
    if min(height, breadth) < 4:
        raise ValueError(f"images must be at least 4x4, got {height}x{breadth}")
    features = 2 * width * (height // 2 // 2) * (breadth // 2 // 2)
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


#: Convolution, normalisation and average of signals (channels, length) and of images (channels, height, width).
_OF_AXES: dict[int, tuple[Any, Any, Any]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d),
}


class BasicBlock(nn.Module):
    """Two convolutions of width 3 with batch normalisation and a shortcut (of width 1 where the shape changes)."""

    def __init__(self, before: int, after: int, stride: int, axes: int = 2) -> None:
        super().__init__()
        convolution, normalisation, _ = _OF_AXES[axes]
        self.conv1 = convolution(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn1 = normalisation(after)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(after, after, 3, padding=1, bias=False)
        self.bn2 = normalisation(after)
        self.relu2 = nn.ReLU()
        same = stride == 1 and before == after
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(convolution(before, after, 1, stride=stride, bias=False), normalisation(after))
        )

    def forward(self, x: Float[Tensor, "batch before *pixels"]) -> Float[Tensor, "batch after *fewer"]:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


def resnet(shape: Sequence[int], classes: int, *, depth: int = 8, width: int = 16) -> nn.Module:
    """Build the CIFAR-style ResNet of He et al. (arXiv 1512.03385): depth 6n + 2, three stages, global average.

    Shortcuts that change shape are 1x1 convolutions (their option B), which bound engines support; option A pads zeros.
    Signals get convolutions along their length.

    Args:
        shape: (channels, height, width) of one image, or (channels, length) of one signal.
        classes: number of logits.
        depth: 8, 14, 20, 32, 44, 56, 110, ...
        width: channels of the first stage; doubled twice.

    Raises:
        ValueError: depth is not 6n + 2.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, ...), got {depth}")
    axes = len(shape) - 1
    convolution, normalisation, average = _OF_AXES[axes]
    layers = [convolution(shape[0], width, 3, padding=1, bias=False), normalisation(width), nn.ReLU()]
    before = width
    for stage in range(3):
        for block in range(blocks):
            after = width * 2**stage
            layers.append(BasicBlock(before, after, 2 if stage and not block else 1, axes))
            before = after
    return nn.Sequential(*layers, average(1), nn.Flatten(), nn.Linear(before, classes))
