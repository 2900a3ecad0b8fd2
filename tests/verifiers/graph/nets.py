"""Tiny networks, one or more for every operator that the native engine bounds, in eval mode, in float32."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import Kind

Function = Callable[[Tensor], Tensor]
IMAGE, FLAT, TOKENS = (2, 6, 6), (6,), (4, 6)


class Fn(nn.Module):
    """A function as a module."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    """Modules by name, and a function of them and the image."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, value in modules.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def settled(network: nn.Module, shape: tuple[int, ...], scale: float = 1.0) -> nn.Module:
    """Eval mode, a linear layer to 3 logits behind it, random affine parts of normalisations, scaled weights."""
    whole = nn.Sequential(network, nn.Flatten(), nn.LazyLinear(3)).eval()
    whole(torch.rand(2, *shape))
    for module in whole.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None:
            nn.init.normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias)
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d):
            module.weight = nn.Parameter(scale * module.weight.detach())
    return whole


def deep_residual() -> nn.Module:
    """Three convolutions, two shortcuts; intervals leave open what rows settle."""

    def function(net: nn.Module, x: Tensor) -> Tensor:
        y = net.first(x).relu()
        y = (net.second(y) + y).relu()
        return F.leaky_relu(net.third(y) + y)

    convolutions = [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)]
    return settled(Net(function, **dict(zip(("first", "second", "third"), convolutions, strict=True))), IMAGE, 1.5)


def deep_dense() -> nn.Module:
    """Three wide layers; intervals leave open what rows settle."""
    layers = [nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.PReLU(20), nn.Linear(20, 20), nn.ReLU()]
    return settled(nn.Sequential(*layers), FLAT, 1.5)


def on(shape: tuple[int, ...], build: Callable[[], nn.Module], scale: float = 1.0) -> Callable[[], nn.Module]:
    return lambda: settled(build(), shape, scale)


def within_mlp(activation: Callable[[], nn.Module]) -> nn.Module:
    """Two layers with the activation, the second of which has weights and biases that are exactly 0."""
    first, second = nn.Linear(6, 7), nn.Linear(7, 7)
    with torch.no_grad():
        second.weight[0] = 0.0
        second.bias[0] = 0.0
        second.weight[1, :3] = 0.0
    return nn.Sequential(first, activation(), second, activation())


def between_convolutions(*middle: nn.Module) -> nn.Module:
    """Rows come back through the middle as windows of the map."""
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), *middle)


def curved() -> nn.Module:
    """A kink that lets everything through, so that no output is constant by chance."""
    return nn.LeakyReLU(0.2)


def _conv(*args: int, **kwargs: object) -> Callable[[], nn.Module]:
    return lambda: between_convolutions(nn.Conv2d(*args, **kwargs), curved())  # type: ignore[arg-type]


def _pool(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: between_convolutions(nn.Conv2d(4, 3, 3, padding=1), make(), nn.Conv2d(3, 2, 1), curved())


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky": lambda: nn.LeakyReLU(0.1),
    "leaky of slope -0.5": lambda: nn.LeakyReLU(-0.5),
    "leaky of slope 2": lambda: nn.LeakyReLU(2.0),
    "prelu": lambda: nn.PReLU(init=0.3),
    "prelu per channel": lambda: _prelu(7),
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.3, 0.5),
    "clamp": lambda: Fn(lambda x: x.clamp(min=-0.1)),
    "elu": lambda: nn.ELU(1.5),
    "selu": nn.SELU,
    "celu": lambda: nn.CELU(0.7),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "erf": lambda: Fn(torch.erf),
    "softplus": lambda: nn.Softplus(2.0, 1.0),
    "abs": lambda: Fn(torch.abs),
    "square": lambda: Fn(lambda x: x**2),
    "x * x": lambda: Fn(lambda x: x * x),
    "x * sigmoid(x)": lambda: Fn(lambda x: x * torch.sigmoid(x)),
    "exp": lambda: Fn(lambda x: torch.exp(-x.square())),
    "sqrt": lambda: Fn(lambda x: torch.sqrt(F.relu(x) + 0.01)),
    "rsqrt": lambda: Fn(lambda x: torch.rsqrt(F.softplus(x) + 0.1)),
    "reciprocal": lambda: Fn(lambda x: 1 / (F.softplus(x) + 0.2) - 2.0 / (-0.5 - x.abs())),
    "log": lambda: Fn(lambda x: torch.log(x.abs() + 0.3)),
    "powers": lambda: Fn(lambda x: (x.abs() + 0.2) ** 0.5 + (x.abs() + 0.2) ** -1 + (x.abs() + 0.2) ** -0.5),
    "softmax": lambda: nn.Softmax(-1),
    "log softmax": lambda: nn.LogSoftmax(-1),
    "log of sums of exp": lambda: Fn(lambda x: x.logsumexp(-1, keepdim=True) * 0.5 + x),
    "log sigmoid": nn.LogSigmoid,
    "log1p": lambda: Fn(lambda x: torch.log1p(x.abs())),
}


def _prelu(channels: int) -> nn.Module:
    module = nn.PReLU(channels)
    nn.init.uniform_(module.weight, -1.5, 1.5)
    return module


def _modes(mode: str) -> Callable[[], nn.Module]:
    return _conv(4, 3, 3, padding=(2, 1), padding_mode=mode)


def _padded(mode: str) -> Callable[[], nn.Module]:
    value = 0.7 if mode == "constant" else None
    return lambda: between_convolutions(
        nn.Conv2d(4, 2, 3), Fn(lambda x: F.pad(x, (1, 2, 0, 3), mode, value)), nn.Conv2d(2, 2, 3), curved()
    )


CONVOLUTIONS: dict[str, Callable[[], nn.Module]] = {
    "conv": _conv(4, 3, 3),
    "conv groups": _conv(4, 6, 3, groups=2, padding=1),
    "conv depthwise": _conv(4, 8, 3, groups=4, padding=1, bias=False),
    "conv dilation": _conv(4, 3, 2, dilation=2, padding=(1, 2)),
    "conv grouped and dilated": _conv(4, 4, 2, dilation=(2, 3), groups=2, stride=2, padding=1),
    "conv stride": _conv(4, 3, 3, stride=(2, 3), padding=1),
    "conv stride larger than kernel": _conv(4, 3, 2, stride=3, padding=1),
    "conv asymmetric": _conv(4, 3, (1, 4), padding=(2, 3)),
    "conv same": _conv(4, 3, (2, 4), padding="same"),
    "conv same odd": _conv(4, 3, (3, 5), padding="same", dilation=(2, 1)),
    "conv valid": _conv(4, 3, (2, 4), padding="valid"),
    "conv 1x1": _conv(4, 3, 1),
    "conv 1x1 padded": _conv(4, 3, 1, padding=2),
    "conv larger than map": _conv(4, 3, 9, padding=3),
    "conv wider than map": _conv(4, 3, (1, 9), padding=(0, 4)),
    "conv after conv": lambda: between_convolutions(
        nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(3, 3, 3, stride=2, padding=2), curved(), nn.Conv2d(3, 2, 2, padding=1)
    ),
    "conv circular": _modes("circular"),
    "conv reflect": _modes("reflect"),
    "conv replicate": _modes("replicate"),
    "conv to one pixel": _conv(4, 5, 6),
    "conv chain": lambda: between_convolutions(
        nn.Conv2d(4, 3, 3, stride=2, padding=1), curved(), nn.Conv2d(3, 3, 2, padding=1), nn.LeakyReLU(0.2)
    ),
    "conv transpose": lambda: between_convolutions(
        nn.Conv2d(4, 3, 3, stride=2, padding=1),
        nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1),
        curved(),
        nn.Conv2d(2, 2, 3, stride=2),
        curved(),
    ),
    "conv transpose grouped": lambda: between_convolutions(
        nn.ConvTranspose2d(4, 4, 2, stride=2, dilation=2, groups=2), curved()
    ),
    "batch norm": lambda: between_convolutions(
        nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3), curved(), nn.BatchNorm2d(3, affine=False)
    ),
    "prelu of maps": lambda: between_convolutions(nn.Conv2d(4, 3, 3, padding=1), _prelu(3), nn.Conv2d(3, 2, 3)),
    "pad constant": _padded("constant"),
    "pad reflect": _padded("reflect"),
    "pad replicate": _padded("replicate"),
    "pad circular": _padded("circular"),
    "pad negative": lambda: between_convolutions(Fn(lambda x: F.pad(x, (-1, 2, 1, -2))), nn.Conv2d(4, 2, 3), curved()),
}

POOLS: dict[str, Callable[[], nn.Module]] = {
    "max pool": _pool(lambda: nn.MaxPool2d(2)),
    "max pool overlapping": _pool(lambda: nn.MaxPool2d(3, 2, 1)),
    "max pool padded": _pool(lambda: nn.MaxPool2d(2, 2, 1)),
    "max pool of stride 1": _pool(lambda: nn.MaxPool2d(3, 1, 1)),
    "max pool dilated": _pool(lambda: nn.MaxPool2d((2, 3), (1, 2), (1, 0), dilation=(3, 2))),
    "max pool ceil": _pool(lambda: nn.MaxPool2d(4, 3, ceil_mode=True)),
    "max pool of one entry": _pool(lambda: nn.MaxPool2d(1, 2)),
    "max pool of everything": _pool(lambda: nn.MaxPool2d(6)),
    "max pool of relu": lambda: between_convolutions(nn.MaxPool2d(3, 2), nn.MaxPool2d(2, 1), nn.Conv2d(4, 2, 1)),
    "average pool": _pool(lambda: nn.AvgPool2d(2)),
    "average pool padded": _pool(lambda: nn.AvgPool2d(3, 2, padding=1)),
    "average pool without pads": _pool(lambda: nn.AvgPool2d(3, 2, padding=1, count_include_pad=False)),
    "average pool ceil": _pool(lambda: nn.AvgPool2d((4, 3), (3, 2), ceil_mode=True)),
    "average pool divisor": _pool(lambda: nn.AvgPool2d(2, divisor_override=3)),
    "adaptive pool": _pool(lambda: nn.AdaptiveAvgPool2d((2, 3))),
    "adaptive pool uneven": _pool(lambda: nn.AdaptiveAvgPool2d((4, 1))),
    "global pool": _pool(lambda: nn.AdaptiveAvgPool2d((1, 1))),
    "mean over axes": _pool(lambda: Fn(lambda x: x.mean((2, 3), keepdim=True) + x.mean(1, keepdim=True))),
    "sum over an axis": _pool(lambda: Fn(lambda x: x.sum(-1, keepdim=True) - x)),
    "upsample nearest": _pool(lambda: nn.Upsample(scale_factor=2)),
    "upsample bilinear": _pool(lambda: nn.Upsample(size=(4, 9), mode="bilinear")),
    "pixel shuffle": lambda: between_convolutions(nn.PixelShuffle(2), nn.Conv2d(1, 2, 3, stride=3), curved()),
}


def _normal(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Conv2d(2, 4, 3, stride=2), make(), curved())


NORMALIZATIONS: dict[str, Callable[[], nn.Module]] = {
    "group norm": _normal(lambda: nn.GroupNorm(2, 4)),
    "group norm of one group": _normal(lambda: nn.GroupNorm(1, 4)),
    "group norm per channel": _normal(lambda: nn.GroupNorm(4, 4, affine=False)),
    "layer norm": _normal(lambda: nn.LayerNorm((4, 2, 2))),
    "layer norm of the last axis": _normal(lambda: nn.LayerNorm(2, eps=1e-2)),
    "layer norm of two axes": _normal(lambda: nn.LayerNorm((2, 2), elementwise_affine=False)),
    "layer norm without bias": _normal(lambda: nn.LayerNorm((4, 2, 2), bias=False)),
    "softmax over channels": _normal(lambda: nn.Softmax(1)),
    "log softmax over channels": _normal(lambda: nn.LogSoftmax(1)),
    "log of sums of exp over two axes": _normal(lambda: Fn(lambda x: x.logsumexp((1, 3)))),
    "softmax of large values": _normal(lambda: Fn(lambda x: (30 * x).softmax(2))),
}


# Values by values: attention, products, squeeze-and-excitation


def _by_hand(net: nn.Module, x: Tensor) -> Tensor:
    q, k, v = net.qkv(x).reshape(len(x), 4, 3, 2, 3).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q @ k.transpose(-2, -1)) * 3**-0.5
    return net.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _fused(net: nn.Module, x: Tensor, **options: object) -> Tensor:
    q, k, v = net.qkv(x).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v, **options)  # type: ignore[arg-type]


def _masked(net: nn.Module, x: Tensor) -> Tensor:
    return _fused(net, x, attn_mask=net.mask, scale=0.7)


def _attention_first(net: nn.Module, x: Tensor) -> Tensor:
    return net.mha(x, x, x, need_weights=False)[0]


def _sequence_first(net: nn.Module, x: Tensor) -> Tensor:
    y = x.transpose(0, 1)
    return net.mha(y, y, y)[0].transpose(0, 1)


def _encoder(**options: object) -> nn.Module:
    return nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options).eval()  # type: ignore[arg-type]


def _class_token(net: nn.Module, x: Tensor) -> Tensor:
    whole = torch.cat([net.token.expand(len(x), -1, -1), x], 1) + net.position
    return net.layer(net.norm(whole))[:, :3]


def _excited(net: nn.Module, x: Tensor) -> Tensor:
    y = net.conv(x)
    gate = torch.sigmoid(net.up(torch.relu(net.down(y.mean((2, 3))))))
    return y * gate[:, :, None, None]


def _shortcut(net: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(net.first(x))
    return torch.relu(net.third(torch.relu(net.second(y))) + net.shortcut(y))


def _residual(net: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(net.first(x))
    z = torch.relu(y + net.second(y))
    return torch.relu(z - net.third(z))


def _dense(net: nn.Module, x: Tensor) -> Tensor:
    y = torch.cat([x, torch.relu(net.first(x))], 1)
    return torch.relu(net.second(torch.cat([y, torch.relu(net.third(y)), y], 1)))


def _maps(first: int, second: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(first, second, 3, stride=stride, padding=1)


VALUES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "product": (FLAT, lambda: Net(lambda n, x: n.a(x) * torch.tanh(n.b(x)), a=nn.Linear(6, 4), b=nn.Linear(6, 4))),
    "product that broadcasts": (
        TOKENS,
        lambda: Net(lambda n, x: n.a(x) * n.b(x).mean(1, keepdim=True), a=nn.Linear(6, 4), b=nn.Linear(6, 4)),
    ),
    "transposed convolution of signals": (
        FLAT,
        lambda: nn.Sequential(nn.Unflatten(1, (2, 3)), nn.ConvTranspose1d(2, 2, 2, stride=2), curved(), nn.Flatten()),
    ),
    "quotient": (FLAT, lambda: Net(lambda n, x: n.a(x) / (n.a(x).abs() + 0.5), a=nn.Linear(6, 4))),
    "matmul": (TOKENS, lambda: Net(lambda n, x: n.a(x) @ n.b(x).mT, a=nn.Linear(6, 3), b=nn.Linear(6, 3))),
    "matmul by constants": (
        TOKENS,
        lambda: Net(lambda n, x: torch.relu(n.left @ (x @ n.right)), left=_constant(3, 4), right=_constant(6, 5)),
    ),
    "attention by hand": (TOKENS, lambda: Net(_by_hand, qkv=nn.Linear(6, 18), out=nn.Linear(6, 4))),
    "fused attention": (TOKENS, lambda: Net(_fused, qkv=nn.Linear(6, 9))),
    "fused attention with a mask": (TOKENS, lambda: Net(_masked, qkv=nn.Linear(6, 9), mask=_constant(4, 4))),
    "multihead": (TOKENS, lambda: Net(_attention_first, mha=nn.MultiheadAttention(6, 2, batch_first=True))),
    "multihead, sequence first": (TOKENS, lambda: Net(_sequence_first, mha=nn.MultiheadAttention(6, 2))),
    "encoder": (TOKENS, lambda: _encoder()),
    "encoder, norm first": (TOKENS, lambda: _encoder(norm_first=True, activation="gelu")),
    "class token": (
        TOKENS,
        lambda: Net(
            _class_token,
            token=_constant(1, 1, 6),
            position=_constant(1, 5, 6),
            norm=nn.LayerNorm(6),
            layer=nn.Sequential(nn.Linear(6, 6), nn.GELU()),
        ),
    ),
    "squeeze and excitation": (
        IMAGE,
        lambda: Net(_excited, conv=_maps(2, 3), down=nn.Linear(3, 2), up=nn.Linear(2, 3)),
    ),
    "residual": (IMAGE, lambda: Net(_residual, first=_maps(2, 3), second=_maps(3, 3), third=nn.Conv2d(3, 3, 1))),
    "residual with a shortcut": (
        IMAGE,
        lambda: Net(
            _shortcut,
            first=_maps(2, 3),
            second=_maps(3, 4, 2),
            third=_maps(4, 4),
            shortcut=nn.Conv2d(3, 4, 1, stride=2),
        ),
    ),
    "dense connections": (IMAGE, lambda: Net(_dense, first=_maps(2, 2), second=_maps(10, 2, 2), third=_maps(4, 2))),
}


def _constant(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


# Shapes and constants


def _arithmetic(net: nn.Module, x: Tensor) -> Tensor:
    row, column = net.row, net.column
    y = torch.relu((x - row) / (column.abs() + 0.5) * -1.5 + 0.3)
    return 2 - torch.sub(y, x, alpha=0.5) + (row - x) * row - (-x)


def _growing(net: nn.Module, x: Tensor) -> Tensor:
    """Constants of more axes or entries than the value."""
    small = x.mean(-1, keepdim=True).mean(1, keepdim=True)
    return torch.relu(small * net.whole + net.column) - x.mean(2, keepdim=True) * net.column


def _reshaped(x: Tensor) -> Tensor:
    y = torch.relu(x.view(x.size(0), -1).unflatten(1, (3, 4, 6)) + 0.5).permute(0, 3, 1, 2).unsqueeze(1).squeeze(1)
    return torch.relu(y.transpose(1, 3).reshape(len(x), 9, 8)[:, ::2, 1:7] - 0.5).flatten(1).flip(1)


def _parts(x: Tensor) -> Tensor:
    a, b, c = x.split([1, 3, 2], 2)
    d, e = x.chunk(2, -1)
    f, g = x.unbind(1)
    stacked = torch.stack([f * 2, torch.relu(g - f)], 1)
    return torch.cat(
        [torch.relu(a - 0.5), b, torch.relu(c - b[:, :, 1:]), stacked[:, :, :, ::3].mT, e.roll(1, 3).mT - d.mT], 2
    )


def _picked(x: Tensor) -> Tensor:
    y = torch.relu(x.index_select(2, torch.tensor([5, 0, 0, 3])) - x[:, :, [1, 2, 2, 4]])
    return torch.relu(
        y.repeat(1, 1, 2, 1)
        + x.new_full((8, 6), 0.2).tril()
        - y[..., :1].expand(-1, -1, -1, 6).repeat(1, 1, 2, 1).triu()
    )


def _cancelling(net: nn.Module, x: Tensor) -> Tensor:
    y, z = torch.relu(net.a(x)), torch.relu(net.b(x))
    return torch.relu(y - z - y) + torch.relu(z + y - z) + (x.mean(1, keepdim=True) - x.mean(1, keepdim=True))


def _reused() -> nn.Module:
    shared, act = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()
    return nn.Sequential(shared, act, nn.Sequential(nn.Sequential(shared, nn.Dropout2d(0.5)), act), shared, act)


def _normalized(net: nn.Module, x: Tensor) -> Tensor:
    return torch.relu(net.conv((x - net.mean[:, None, None]) / net.std.view(1, -1, 1, 1)))


def _one_dimensional() -> nn.Module:
    body = [nn.Conv1d(4, 4, 3, stride=2, padding=1, groups=2), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2)]
    return nn.Sequential(*body, nn.Conv1d(4, 2, 1), nn.GELU())


SHAPES: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "layer norm of a pair": ((2,), lambda: nn.LayerNorm(2, eps=1e-2)),
    "layer norm of two entries": (FLAT, lambda: nn.Sequential(nn.Unflatten(1, (3, 2)), nn.LayerNorm(2, eps=1e-2))),
    "layer norm of the image": (FLAT, lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6))),
    "linear": (FLAT, lambda: nn.Linear(6, 4)),
    "linear on the last axis": (TOKENS, lambda: nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))),
    "batch norm 1d": (FLAT, lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5))),
    "one dimension": (TOKENS, _one_dimensional),
    "arithmetic": (
        IMAGE,
        lambda: nn.Sequential(Net(_arithmetic, row=_constant(6), column=_constant(6, 1)), nn.ReLU()),
    ),
    "constants that broadcast": (IMAGE, lambda: Net(_growing, whole=_constant(2, 6, 6), column=_constant(6, 1))),
    "reshapes": (IMAGE, lambda: nn.Sequential(_maps(2, 2), Fn(_reshaped))),
    "parts": (IMAGE, lambda: nn.Sequential(_maps(2, 2), Fn(_parts), nn.ReLU())),
    "picks": (IMAGE, lambda: nn.Sequential(_maps(2, 2), Fn(_picked))),
    "cancellation": (IMAGE, lambda: Net(_cancelling, a=_maps(2, 3), b=nn.Conv2d(2, 3, 1))),
    "reused modules": (IMAGE, _reused),
    "normalisation by buffers": (
        IMAGE,
        lambda: Net(_normalized, mean=torch.tensor([0.4, 0.5]), std=torch.tensor([0.2, 0.3]), conv=_maps(2, 3, 2)),
    ),
}


def _cases() -> list[Kind]:
    cases = [Kind(name, on(FLAT, partial(within_mlp, made), 1.5), FLAT) for name, made in ACTIVATIONS.items()]
    for name in (
        "relu",
        "leaky of slope 2",
        "hardtanh",
        "elu",
        "gelu",
        "silu",
        "hardswish",
        "tanh",
        "sigmoid",
        "softmax",
        "log softmax",
    ):
        cases.append(Kind(f"{name}, large weights", on(FLAT, partial(within_mlp, ACTIVATIONS[name]), 12.0), FLAT))
    for table in (CONVOLUTIONS, POOLS):
        cases += [Kind(name, on(IMAGE, made, 1.5), IMAGE) for name, made in table.items()]
    cases += [Kind(name, on(IMAGE, made), IMAGE) for name, made in NORMALIZATIONS.items()]
    cases += [Kind(name, on(shape, made, 1.2), shape) for name, (shape, made) in {**VALUES, **SHAPES}.items()]
    return cases


CASES: dict[str, Kind] = {case.name: case for case in _cases()}
