"""The networks of the literature for images of 32x32 pixels, and those of public verification benchmarks.

For CIFAR-sized images a residual network begins with a 3x3 convolution of stride 1, not with ImageNet's 7x7 convolution
and pooling, which leave 8x8 pixels of 32x32. ``shape`` is always (channels, height, width) of one image, ``classes``
the number of logits.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from certkd.networks.builders.small import BasicBlock


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch normalisation and ReLU; the shortcut starts after the first ReLU.

    Where the shape stays, the shortcut is the input itself.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(before), nn.ReLU()
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.bn2, self.relu2 = nn.BatchNorm2d(after), nn.ReLU()
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = stride == 1 and before == after
        self.shortcut = None if same else nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "batch before height width"]) -> Float[Tensor, "batch after h w"]:
        active = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


def _stages(block: type[nn.Module], before: int, widths: Sequence[int], blocks: int) -> list[nn.Module]:
    """Build stages of blocks; each but the first halves the sides."""
    layers = []
    for stage, after in enumerate(widths):
        for number in range(blocks):
            layers.append(block(before, after, 2 if stage and not number else 1))
            before = after
    return layers


def _head(width: int, classes: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)


def resnet18(shape: Sequence[int], classes: int, *, width: int = 64) -> nn.Module:
    """Build ResNet-18 (He et al., arXiv 1512.03385) with a 3x3 stem.

    Args:
        width: channels of the first of four stages; doubled three times.
    """
    stem = nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    stages = _stages(BasicBlock, width, [width, 2 * width, 4 * width, 8 * width], 2)
    return nn.Sequential(*stem, *stages, *_head(8 * width, classes))


def preact_resnet18(shape: Sequence[int], classes: int, *, width: int = 64) -> nn.Module:
    """Build PreActResNet-18 (He et al., arXiv 1603.05027) with a 3x3 stem, and a last normalisation and ReLU.

    Args:
        width: channels of the first of four stages; doubled three times.
    """
    stages = _stages(PreActBlock, width, [width, 2 * width, 4 * width, 8 * width], 2)
    last = nn.BatchNorm2d(8 * width), nn.ReLU()
    stem = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
    return nn.Sequential(stem, *stages, *last, *_head(8 * width, classes))


def wide_resnet(shape: Sequence[int], classes: int, *, depth: int = 28, factor: int = 10) -> nn.Module:
    """Build WRN-depth-factor (Zagoruyko and Komodakis, arXiv 1605.07146): WRN-28-10 and WRN-34-10 are the usual ones.

    Args:
        depth: 6n + 4: 10, 16, 22, 28, 34, ...
        factor: width of the three stages in 16, 32 and 64 channels.

    Raises:
        ValueError: depth is not 6n + 4.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, 34, ...), got {depth}")
    stages = _stages(PreActBlock, 16, [16 * factor, 32 * factor, 64 * factor], blocks)
    last = nn.BatchNorm2d(64 * factor), nn.ReLU()
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1, bias=False), *stages, *last, *_head(64 * factor, classes)
    )


def mobilenet_v2(shape: Sequence[int], classes: int, *, width: float = 1.0) -> nn.Module:
    """Build torchvision's MobileNetV2 (Sandler et al., arXiv 1801.04381) with strides for 32x32 pixels.

    The stem and the second stage keep the resolution, so that 4x4 pixels reach the average, as in the students of
    robust distillation.

    Args:
        width: factor of all channels.
    """
    from torchvision.models.mobilenetv2 import MobileNetV2

    stages = [  # expansion, channels, blocks, stride
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    network = MobileNetV2(num_classes=classes, width_mult=width, inverted_residual_setting=stages, dropout=0.0)
    old = network.features[0][0]
    network.features[0][0] = nn.Conv2d(shape[0], old.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.features[0][0].weight, mode="fan_out")
    return network


class PlainBlock(nn.Module):
    """Two 3x3 convolutions without normalisation, and a 1x1 shortcut where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(after, after, 3, padding=1), nn.ReLU()
        same = stride == 1 and before == after
        self.shortcut = nn.Identity() if same else nn.Conv2d(before, after, 1, stride=stride)

    def forward(self, x: Float[Tensor, "batch before height width"]) -> Float[Tensor, "batch after h w"]:
        return self.relu2(self.conv2(self.relu1(self.conv1(x))) + self.shortcut(x))


def resnet_2b(shape: Sequence[int], classes: int, *, width: int = 8) -> nn.Module:
    """Build the ResNet-2B of VNN-COMP: a convolution of stride 2, a stage of two blocks, two dense layers.

    Args:
        width: channels of the first convolution; the stage has twice as many.
    """
    return _plain_resnet(shape, classes, width, stages=1)


def resnet_4b(shape: Sequence[int], classes: int, *, width: int = 16) -> nn.Module:
    """Build the ResNet-4B of VNN-COMP: as ResNet-2B with two stages of two blocks, twice as wide.

    Args:
        width: channels of the first convolution; the stages have twice as many.
    """
    return _plain_resnet(shape, classes, width, stages=2)


def _plain_resnet(shape: Sequence[int], classes: int, width: int, *, stages: int, hidden: int = 100) -> nn.Module:
    channels, *sides = shape
    layers, before = [nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.ReLU()], width
    for _ in range(stages):
        layers += [PlainBlock(before, 2 * width, 2), PlainBlock(2 * width, 2 * width, 1)]
        before = 2 * width
    height, breadth = (-(-side // 2 ** (stages + 1)) for side in sides)
    layers += [nn.Flatten(), nn.Linear(2 * width * height * breadth, hidden), nn.ReLU(), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers)


def cnn7(shape: Sequence[int], classes: int, *, width: int = 64, hidden: int = 512) -> nn.Module:
    """Build the CNN7 of certified training (Shi et al., arXiv 2103.17268), normalised after every layer but the last.

    Args:
        width: channels of the first two convolutions; the other three have twice as many.
        hidden: width of the dense layer.
    """
    channels, *sides = shape
    layers, before = list[nn.Module](), channels
    for after, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, 1)):
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        before = after
    height, breadth = (-(-side // 2) for side in sides)
    layers += [nn.Flatten(), nn.Linear(before * height * breadth, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))
