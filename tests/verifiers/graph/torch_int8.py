"""Networks that ``torch.ao.quantization`` made, for tests; torch warns that it is old."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.ao.nn.quantized as nnq
    import torch.ao.quantization as quantization


class Residual(nn.Module):
    """Two convolutions with a shortcut, a maximum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = quantization.QuantStub(), quantization.DeQuantStub()
        self.first, self.relu = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU()
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.sum, self.plain = nnq.FloatFunctional(), nnq.FloatFunctional()
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(self.into(x)))
        x = self.sum.add_relu(x, self.second(x))
        x = self.pool(self.plain.add(x, x))
        return self.out(self.head(torch.flatten(x, 1)))


def layers() -> nn.Sequential:
    """Two convolutions and two linear layers, one of each with a ReLU."""
    return nn.Sequential(
        quantization.QuantStub(),
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 2, bias=False),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(4, 12),
        nn.ReLU(),
        nn.Linear(12, 3),
        quantization.DeQuantStub(),
    )


def qconfig(engine: str = "x86") -> Any:
    """Values as usual, and weights of seven bits, whose products no processor clips."""
    weight = quantization.PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, reduce_range=True
    )
    return quantization.QConfig(activation=quantization.get_default_qconfig(engine).activation, weight=weight)


def quantized(network: nn.Module, fused: Sequence[Sequence[str]], *, engine: str = "x86", seed: int = 0) -> Any:
    """Fuse, calibrate on random 4x4 images, and convert a network, whose weights become those of the seed."""
    torch.manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, torch.backends.quantized.engine = torch.backends.quantized.engine, engine
        try:
            network = network.eval()
            network.qconfig = qconfig(engine)
            network = quantization.fuse_modules(network, [list(names) for names in fused])
            network = quantization.prepare(network)
            network(torch.rand(256, 1, 4, 4))
            return quantization.convert(network)
        finally:
            torch.backends.quantized.engine = before


def plain(*, engine: str = "x86", seed: int = 0) -> Any:
    """The quantised network of ``layers``; a class of a user's own for the command line."""
    return quantized(layers(), [["1", "2"], ["6", "7"]], engine=engine, seed=seed)


def residual(*, engine: str = "x86", seed: int = 0) -> Any:
    """The quantised network of ``Residual``."""
    return quantized(Residual(), [["first", "relu"]], engine=engine, seed=seed)
