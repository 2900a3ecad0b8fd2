"""What auto-LiRPA bounds wrongly is refused by name, what is allowed stands up to attack, and lies are found out."""

import copy
import itertools
import logging
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.certifying import answers, prepared
from tests.marks import only, thin
from tests.zoo import BY_NAME, ZOO, Kind, images, mlp
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.checks import check_forward, check_sandwich
from verifiers.bound_propagation.engine import Planes
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, project, random_start
from verifiers.methods.crown import Crown, Ibp

pytestmark = pytest.mark.skipif(compat.version() is None, reason="auto-LiRPA is not installed")

every_norm = pytest.mark.parametrize("norm", tuple(Norm), ids=str)
METHODS = ("ibp", "crown-ibp", "crown")
IMAGE = (2, 6, 6)


class Custom(nn.Module):
    """A convolution, a function, and a linear layer, all in a forward of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.function = nn.Conv2d(2, 4, 3, padding=1), function
        with torch.no_grad():
            features = self.function(self.conv(torch.rand(1, *IMAGE))).flatten(1).shape[1]
        self.linear = nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.flatten(self.function(self.conv(x)), 1))


def custom(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    kind = Kind("", lambda: Custom(function), IMAGE)
    return kind.network(), kind.images(2)


def around(layer: nn.Module) -> tuple[nn.Module, Tensor]:
    """A layer as module 2 of a convolutional network."""

    def build() -> nn.Module:
        head = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), layer, nn.Flatten())
        with torch.no_grad():
            features = head.eval()(torch.rand(1, *IMAGE)).shape[1]
        return nn.Sequential(*head, nn.Linear(features, 3))

    kind = Kind("", build, IMAGE)
    return kind.network(), kind.images(2)


LAYERS = {
    "padded average pool": nn.AvgPool2d(3, 2, padding=1),
    "average pool that does not count its padding": nn.AvgPool2d(2, 2, padding=1, count_include_pad=False),
    "average pool, overlapping": nn.AvgPool2d(3, 1),
    "average pool with a divisor": nn.AvgPool2d(2, divisor_override=3),
    "average pool, ceil mode": nn.AvgPool2d(4, ceil_mode=True),
    "padded max pool": nn.MaxPool2d(3, 2, 1),
    "max pool, ceil mode": nn.MaxPool2d(4, ceil_mode=True),
    "max pool, dilated": nn.MaxPool2d(2, dilation=2),
    "dilated convolution": nn.Conv2d(4, 4, 3, dilation=2),
    "replicate padding": nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
    "circular padding": nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "same padding": nn.Conv2d(4, 4, 2, padding="same"),
    "gelu": nn.GELU(),
    "layer norm": nn.LayerNorm([6, 6]),
    "group norm": nn.GroupNorm(2, 4),
    "batch statistics": nn.BatchNorm2d(4, track_running_stats=False),
    "softmax": nn.Softmax(1),
    "leaky with a slope above 1": nn.LeakyReLU(2.0),
    "leaky with a falling slope": nn.LeakyReLU(-0.5),
    "adaptive pool": nn.AdaptiveAvgPool2d(4),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.thin(3)
def test_an_unsound_layer_is_refused_by_its_path(name: str) -> None:
    network, x = around(copy.deepcopy(LAYERS[name]))
    with pytest.raises(Unsupported, match=rf"layer '2' \({type(LAYERS[name]).__name__}\)"):
        AutoLirpa(network, x)


def test_the_path_of_a_nested_layer_is_named() -> None:
    network, x = around(nn.Sequential(nn.ReLU(), nn.Sequential(nn.GELU())))
    with pytest.raises(Unsupported, match=r"layer '2\.1\.0' \(GELU\)"):
        prepared(Crown(engine="auto-lirpa"), network, x)


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "padded average pool": (lambda z: F.avg_pool2d(z, 3, 2, padding=1), "AveragePool"),
    "average pool that does not count its padding": (
        lambda z: F.avg_pool2d(z, 2, 2, padding=1, count_include_pad=False),
        "AveragePool|auto-LiRPA cannot build",
    ),
    "padded max pool": (lambda z: F.max_pool2d(z, 3, 2, 1), "MaxPool"),
    "max pool that drops a border": (lambda z: F.max_pool2d(z, 4), "do not divide"),
    "square root": (lambda z: torch.sqrt(z * z + 0.01), "Sqrt"),
    "reciprocal": (lambda z: 1 / (z + 3), "Reciprocal|Div"),
    "square by power": (lambda z: z**2, "Pow"),
    "fourth power": (lambda z: z**4, "Pow"),
    "dilated convolution": (lambda z: F.conv2d(z, torch.ones(4, 4, 3, 3, dtype=z.dtype), dilation=2), "dilation"),
    "gelu": (F.gelu, "auto-LiRPA"),
    "softmax": (lambda z: torch.softmax(z, 1), "Softmax|Div"),
    "dropout that is always on": (lambda z: F.dropout(z, 0.5, training=True), "draws random numbers"),
    "falling leaky": (lambda z: F.leaky_relu(z, -0.5), "LeakyRelu.*negative_slope"),
    "steep leaky": (lambda z: F.leaky_relu(z, 2.0), "LeakyRelu.*negative_slope"),
    "maximum over channels": (lambda z: z.amax(1), "ReduceMax"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.thin(2)
def test_an_unsound_function_is_refused_by_its_operator(name: str) -> None:
    function, expected = FUNCTIONS[name]
    network, x = custom(function)
    logging.getLogger("auto_LiRPA").disabled = True
    try:
        with pytest.raises(Unsupported, match=expected):
            AutoLirpa(network, x)
    finally:
        logging.getLogger("auto_LiRPA").disabled = False


def test_a_network_whose_matrices_would_not_fit_is_left_to_the_native_engine() -> None:
    """16 x 32 x 32 neurons as functions of as many others, in float64, for lower and upper bounds."""
    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(1024, 2)).eval()
    x = torch.rand(2, 3, 32, 32)
    with pytest.raises(Unsupported, match=r"4\.0 GiB a sample and more, for 16384 neurons .* of 16384"):
        AutoLirpa(network, x)
    assert prepared(Crown(engine="auto", cross_check=0), network, x).notes["engine"] == "native"


def test_the_layer_before_a_refused_operator_is_named() -> None:
    network, x = custom(FUNCTIONS["square root"][0])
    nested = nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 1), network)).eval()
    with pytest.raises(Unsupported, match=r"operator Sqrt at '/[^']+' \(after layer '0\.1\.conv'\)"):
        AutoLirpa(nested, x)
    dilated = nn.Sequential(nn.Conv2d(2, 2, 1), Dilated()).eval()
    with pytest.raises(Unsupported, match=r"operator Conv at '/\S+' \(layer '1'\): dilation"):
        AutoLirpa(dilated, x)


class Dilated(nn.Module):
    """A convolution that no module of torch makes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(3, 2, 3, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, dilation=2).flatten(1)


@pytest.mark.parametrize("function", [lambda z: z - z.mean(0, keepdim=True)], ids=["batch mean"])
def test_a_network_that_depends_on_its_batch_is_a_contradiction(function: Callable[[Tensor], Tensor]) -> None:
    network, x = custom(function)
    with pytest.raises(Contradiction, match="mixes the images of a batch"):
        AutoLirpa(network, x)


# Allowed things stand up to attack


def broken_by(engine: AutoLirpa, x: Tensor, eps: float, norm: Norm, method: str, points: int = 400) -> float:
    """How far random points, points of the sphere and corners get below the bounds of all logits and their negations.

    In units of the largest logit: positive when a bound is wrong.
    """
    network, x = engine.model, x.double()
    with torch.no_grad():
        logits = network(x)
    eye = torch.eye(logits.shape[1], dtype=torch.float64).expand(len(x), -1, -1)
    rows, radius = torch.cat([eye, -eye], dim=1), torch.full((len(x),), eps, dtype=torch.float64)
    lower = engine.ask(Balls(x, radius, norm), rows, method, iterations=6).bound
    generator, worst = torch.Generator().manual_seed(0), -float("inf")
    many = x.repeat_interleave(points, 0)
    delta = random_start(many, radius.repeat_interleave(points), norm, generator)
    delta[::2] = project(delta[::2].sign() * 1e3, radius.repeat_interleave(points)[::2], norm)
    with torch.no_grad():
        values = network((many + delta).clamp(0, 1)).reshape(len(x), points, -1)
    both = torch.cat([values, -values], dim=2)
    worst = float((lower[:, None] - both).max())
    return worst / max(1.0, float(both.abs().max()))


@pytest.mark.parametrize("kind", thin(ZOO, every=6), ids=lambda kind: kind.name)
@pytest.mark.thin(2)
def test_allowed_layers_stand_up_to_attack(kind: Kind) -> None:
    x = kind.images(3)
    engine = AutoLirpa(kind.network(), x)
    for norm, method, eps in itertools.product(Norm, METHODS, (0.01, 0.2, 1.0)):
        excess = broken_by(engine, x, eps, norm, method)
        assert excess <= 1e-9, f"{kind.name}: the {method} bound in {norm} at {eps} is broken by {excess:.3g}"


ALLOWED: dict[str, Callable[[Tensor], Tensor]] = {
    "absolute value": torch.abs,
    "exponential": torch.exp,
    "square by product": lambda z: z * z,
    "product": lambda z: z * (z + 1),
    "gate": lambda z: z * z.mean((2, 3), keepdim=True).sigmoid(),
    "concatenation": lambda z: torch.cat([z.relu(), z.abs()], 1),
    "difference": lambda z: 1 - z.relu(),
    "channel constants": lambda z: (z - torch.arange(4.0, dtype=z.dtype).reshape(4, 1, 1)) * 2,
    "mean": lambda z: z.mean((2, 3)).relu(),
    "view by batch size": lambda z: z.view(z.size(0), -1).relu(),
    "view by groups": lambda z: z.view(z.shape[0], 4, -1).mean(2).relu(),
    "average pool": lambda z: F.avg_pool2d(z, 2).relu(),
    "max pool": lambda z: F.max_pool2d(z, 2),
}


@pytest.mark.parametrize("name", thin(ALLOWED))
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_allowed_functions_stand_up_to_attack_in_any_batch(name: str) -> None:
    network, _ = custom(ALLOWED[name])
    for count in (1, 4):
        x = images(IMAGE, count)
        engine = AutoLirpa(network, x)
        for norm, method, eps in itertools.product(Norm, METHODS, (0.01, 0.3)):
            excess = broken_by(engine, x, eps, norm, method)
            assert excess <= 1e-9, f"{name}: {method} in {norm} at {eps}, batch {count}, is broken by {excess:.3g}"


@pytest.mark.parametrize("first", thin([torch.relu, torch.sigmoid, lambda z: z * z]), ids=["relu", "sigmoid", "square"])
def test_a_first_layer_that_is_not_linear(first: Callable[[Tensor], Tensor]) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest = mlp((6, 8, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(first(x))

    kind = Kind("", First, (6,))
    engine, x = AutoLirpa(kind.network(), kind.images(2)), kind.images(4)
    for norm, method in itertools.product(Norm, METHODS):
        excess = broken_by(engine, x, 0.3, norm, method)
        assert excess <= 1e-9, f"{method} in {norm} is broken by {excess:.3g}"


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.SiLU])
@pytest.mark.parametrize("scale", only([3e3], [30.0, 3e3, 1e5]))
@pytest.mark.thin(2)
def test_saturated_activations(activation: type[nn.Module], scale: float) -> None:
    kind = Kind("", lambda: mlp((6, 8, 8, 3), activation), (6,))
    network, x = kind.network(), kind.images(8)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale)
    engine = AutoLirpa(network, x)
    for norm, eps in itertools.product((Norm.LINF, Norm.L2), (1e-9, 0.01, 0.03, 0.1, 0.3)):
        excess = broken_by(engine, x, eps, norm, "crown")
        assert excess <= 1e-9, f"weights times {scale}: {norm} at {eps} is broken by {excess:.3g}"


# Constants with a batch dimension


class Standardize(nn.Module):
    """(x - mean) / std with buffers of shape (1, channels, 1, 1) before a network."""

    def __init__(self, divide: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.5, 0.3]).reshape(1, 2, 1, 1))
        self.register_buffer("std", torch.tensor([0.2, 0.4]).reshape(1, 2, 1, 1))
        self.network, self.divide = BY_NAME["max pool"].build(), divide

    def forward(self, x: Tensor) -> Tensor:
        centred = x - self.mean
        return self.network(centred / self.std if self.divide else centred * (1 / self.std))


@pytest.mark.parametrize("divide", [False, True], ids=["times", "divided"])
def test_constants_that_broadcast_over_the_batch_are_right_or_refused(divide: bool) -> None:
    kind = Kind("", lambda: Standardize(divide), IMAGE)
    network, x = kind.network(), kind.images(4)
    try:
        engine = AutoLirpa(network, x)
    except Unsupported as refusal:
        assert "Div" in str(refusal), f"refused for another reason: {refusal}"
        assert divide, "a product with a constant is refused"
        return
    layered = nn.Sequential(_affine(network), network.network).eval()
    rows, radius = torch.eye(3, dtype=torch.float64).expand(4, 3, 3), torch.full((4,), 0.02, dtype=torch.float64)
    reference = AutoLirpa(layered, x)
    for norm in Norm:
        one = engine.ask(Balls(x, radius, norm), rows, "crown").bound
        two = reference.ask(Balls(x, radius, norm), rows, "crown").bound
        if norm is Norm.LINF:
            torch.testing.assert_close(one, two, rtol=0, atol=1e-5, msg="not the bounds of the same network")
        else:  # the layer before the first convolution is not known to be affine: bounds of the box
            assert bool((one <= two + 1e-5).all()), f"{norm}: better than the bounds of the same network"
        assert broken_by(engine, x, 0.2, norm, "crown") <= 1e-9, f"{norm}: a bound is broken"


def _affine(network: Standardize) -> nn.Module:
    layer = nn.Conv2d(2, 2, 1, groups=2)
    with torch.no_grad():
        layer.weight.copy_((1 / network.std).reshape(2, 1, 1, 1))
        layer.bias.copy_((-network.mean / network.std).reshape(2))
    return layer


def test_a_reshape_to_the_traced_batch_size_works_one_sample_at_a_time() -> None:
    network, x = custom(ALLOWED["view by groups"])
    assert AutoLirpa(network, x).batch_size == 1, "samples of a batch would be mixed"
    assert AutoLirpa(network, x[:1]).batch_size == 1, "one sample does not show that a batch is mixed"


# Lies


class Liar:
    """An engine whose bounds are too good by a little."""

    def __init__(self, engine: AutoLirpa, lie: float) -> None:
        self.name, self.batch_size, self.engine, self.lie = engine.name, engine.batch_size, engine, lie
        self.model = engine.model

    def ask(self, balls: Balls, rows: Tensor, method: str, **more: Any) -> Planes:
        told = self.engine.ask(balls, rows, method, **more)
        return replace(told, bound=told.bound + self.lie)


@every_norm
@pytest.mark.parametrize("lie", [0.1, float("inf")])
def test_a_lying_engine_is_caught(norm: Norm, lie: float) -> None:
    kind = BY_NAME["mlp"]
    engine, x = AutoLirpa(kind.network(), kind.images(2)), kind.images(2).double()
    balls = Balls.around(x, 0.02, norm)
    check_sandwich(engine.model, engine, balls, "crown")
    with pytest.raises(Contradiction, match="crown bound of engine auto-lirpa is broken"):
        check_sandwich(engine.model, Liar(engine, lie), balls, "crown")
    check_sandwich(engine.model, Liar(engine, float("nan")), balls, "crown")  # claims nothing


def test_a_method_does_not_start_with_a_lying_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    kind = BY_NAME["mlp"]
    honest = AutoLirpa._bounds
    monkeypatch.setattr(AutoLirpa, "_bounds", lambda *args: honest(*args) + 0.1)
    with pytest.raises(Contradiction, match="broken"):
        prepared(Ibp(engine="auto-lirpa", cross_check=0), kind.network(), kind.images(2), eps=0.001)


def test_a_graph_that_is_another_network_is_caught() -> None:
    kind = BY_NAME["cnn"]
    network, x = kind.network().double(), kind.images(2).double()
    check_forward(network, network, x, "a graph")
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[-1].bias[0] += 1e-6

    def sometimes_nan(z: Tensor) -> Tensor:
        return network(z) + (float("nan") if bool((z == x[1]).all()) else 0.0)

    for graph in (other, kind.network(seed=1).double(), sometimes_nan):
        with pytest.raises(Contradiction, match="another network"):
            check_forward(network, graph, x, "a graph")


# What is left as it was


def test_dropout_in_eval_mode_is_the_identity_wherever_it_stands() -> None:
    kind = BY_NAME["dropout"]
    network, x = kind.network(), kind.images(3)
    without = nn.Sequential(*[layer for layer in network if not isinstance(layer, nn.Dropout)]).eval()
    assert len(without) == len(network) - 2, "the network has no dropout to remove"
    rows, eps = torch.eye(3, dtype=torch.float64).expand(3, 3, 3), torch.full((3,), 0.05, dtype=torch.float64)
    for method in METHODS:
        one, two = (AutoLirpa(net, x).ask(Balls(x, eps, Norm.LINF), rows, method).bound for net in (network, without))
        torch.testing.assert_close(one, two, rtol=0, atol=0, msg=f"{method}: dropout changes the bounds")


@pytest.mark.parametrize("name", ["batch norm", "dropout", "residual"])
@pytest.mark.thin(2)
def test_the_network_is_left_as_it_was(name: str) -> None:
    kind = BY_NAME[name]
    network, x = kind.network(), kind.images(2)
    network[0].train()
    weights = copy.deepcopy(network.state_dict())
    modes = [module.training for module in network.modules()]
    types, wanted = [type(m) for m in network.modules()], [p.requires_grad for p in network.parameters()]
    answers(prepared(Crown(engine="auto-lirpa"), network, x, norm=Norm.L2), network, x)
    for key, value in network.state_dict().items():
        assert value.dtype == weights[key].dtype and torch.equal(value, weights[key]), f"{key} changed"
    assert [module.training for module in network.modules()] == modes, "training flags changed"
    assert [type(m) for m in network.modules()] == types, "modules were replaced"
    assert [p.requires_grad for p in network.parameters()] == wanted, "requires_grad changed"


def test_global_state_is_left_as_it_was() -> None:
    compat.load()
    kind = BY_NAME["sigmoid"]
    before = _global_state()
    network, x = kind.network(), kind.images(2)
    answers(prepared(Crown(engine="auto-lirpa"), network, x, norm=Norm.L1), network, x, torch.zeros(2).long())
    with pytest.raises(Unsupported):
        AutoLirpa(*around(nn.GELU()))
    for name, old in before.items():
        assert _global_state()[name] == old, f"{name} changed"
    assert "numpy.lib.arraysetops" not in sys.modules, "a stand-in module of numpy is left behind"


def _global_state() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "warning filters": list(warnings.filters),
        "torch.clamp": torch.clamp,
        "Tensor.clamp": Tensor.clamp,
        "random state": torch.get_rng_state().sum().item(),
        "gradient mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "numpy modules": sorted(name for name in sys.modules if name.startswith("numpy.lib")),
        "onnx functions": [hasattr(torch.onnx.utils, "_optimize_graph")],
    }
