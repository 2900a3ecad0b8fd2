"""What the native engine takes and refuses: networks as users write and import them."""

import cProfile
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from certkd.networks.builders import small
from tests.marks import only
from tests.verifiers.graph.nets import Fn, Net
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls
from verifiers.graph.watch import watch


class Counting(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class Blocks(nn.Module):
    """Two blocks, the second with a function of its own."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"act": Fn(f)}) for f in (torch.relu, function)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["act"](x)
        return self.head(x)


def refusal(network: nn.Module, shape: tuple[int, ...] = (6,)) -> str:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(Unsupported) as caught:
        Native(network.eval(), torch.rand((2, *shape), generator=generator))
    message = str(caught.value)
    assert "\n" not in message, f"more than one line: {message}"
    assert message.startswith(("native: ", "the network", "torch.export", "operator ")), message
    return message


UNKNOWN: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "sort": lambda x: x.sort(1).values,
    "topk": lambda x: x.topk(6, 1).values,
    "round": torch.round,
    "cumprod": lambda x: x.cumprod(1),
    "remainder": lambda x: x % 0.3,
    "fft_rfft": lambda x: torch.fft.fft(x, dim=1).real,
    "rand_like": lambda x: x + torch.rand_like(x),
    "rand": lambda x: x + torch.rand(6),
    "dropout": lambda x: F.dropout(x, 0.5, training=True),
    "_to_copy": lambda x: (x * 5).to(torch.int32).to(x.dtype),
    "div": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "pow": lambda x: x**x,
    "truth": lambda x: ((x > 0.5) + (x > 0.2)) * x,
}
#: What torch.export makes of some of them.
SEEN_AS = {
    "fft_rfft": ("fft", "_to_copy"),
    "_to_copy": ("_to_copy", "'to'"),
    "truth": ("sum of truth values",),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.thin(3)
def test_an_unknown_operator_is_refused_with_its_name_and_place(name: str) -> None:
    message = refusal(Blocks(UNKNOWN[name]))
    assert any(seen in message for seen in SEEN_AS.get(name, (name,))), f"the operator is not named: {message}"
    place = "test_capture.py:" if "random" in message else "blocks.1.act"
    assert place in message, f"the place is not named: {message}"


def _chosen(x: Tensor) -> Tensor:
    return x if x.sum() > 0 else -x


NOT_CAPTURED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "control flow": (lambda: Fn(_chosen), "reads values of the image in Python (test_capture.py:"),
    "boolean mask": (lambda: Fn(lambda x: x[x > 0.5].sum().reshape(1, 1)), "the shape of a tensor depends on"),
    "python number": (lambda: Fn(lambda x: x * float(x.max())), "reads values of the image in Python"),
    "two outputs": (lambda: Fn(lambda x: (x, x * 2)), "one tensor"),
    "no tensor": (lambda: Fn(lambda x: {"logits": x}["logits"].shape), "one tensor"),
    "constant output": (lambda: Fn(lambda x: torch.ones(1, 3)), "one tensor"),
    "buffer": (Counting, "calls"),
    "batch statistics": (lambda: nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)), ""),
    "causal mask": (
        lambda: nn.Sequential(
            nn.Unflatten(1, (3, 2)), Fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), nn.Flatten()
        ),
        "scaled_dot_product_attention",
    ),
}


@pytest.mark.parametrize("name", NOT_CAPTURED)
def test_a_network_without_a_graph_is_refused(name: str) -> None:
    build, reason = NOT_CAPTURED[name]
    assert reason in refusal(build())


@pytest.mark.parametrize(
    "function",
    [lambda x: x - x.mean(0), lambda x: x.softmax(0) * x, lambda x: x - x.flip(0) / 2, lambda x: x.T @ x],
    ids=["mean", "softmax", "flip", "product"],
)
def test_a_network_that_mixes_the_batch_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((Unsupported, Contradiction, InputError)):
        Native(Fn(lambda x: function(x)[:, :3]).eval(), torch.rand(2, 6))


# Networks of libraries


def _sequence_first() -> nn.Module:
    mha, head = nn.MultiheadAttention(6, 2), nn.Linear(24, 3)
    return Net(
        lambda n, x: n.head(
            n.mha(x.transpose(0, 1), x.transpose(0, 1), x.transpose(0, 1))[0].transpose(0, 1).flatten(1)
        ),
        mha=mha,
        head=head,
    )


def _vit() -> nn.Module:
    options = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 10}
    return timm.models.vision_transformer.VisionTransformer(**options)


LIBRARY: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "certkd mlp": ((1, 8, 8), lambda: small.mlp((1, 8, 8), 10)),
    "certkd cnn": ((1, 8, 8), lambda: small.cnn((1, 8, 8), 10, width=4)),
    "certkd resnet": ((3, 8, 8), lambda: small.resnet((3, 8, 8), 10, depth=8, width=4)),
    "one axis": ((6,), lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))),
    "sequence first": ((4, 6), _sequence_first),
    "torchvision resnet18": ((3, 32, 32), lambda: torchvision.models.resnet18(num_classes=10)),
    "torchvision mobilenet_v2": ((3, 32, 32), lambda: torchvision.models.mobilenet_v2(num_classes=10)),
    "timm resnet18": ((3, 32, 32), lambda: timm.create_model("resnet18", num_classes=10)),
    "timm vit": ((3, 16, 16), _vit),
}


def _library(name: str) -> tuple[nn.Module, Tensor]:
    shape, build = LIBRARY[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return network, 0.1 + 0.8 * torch.rand(2, *shape)


@pytest.mark.parametrize("name", only(("certkd resnet", "sequence first", "torchvision resnet18"), LIBRARY))
@pytest.mark.thin(3)
def test_networks_of_libraries_are_captured_and_bounded(name: str) -> None:
    """Forward equality is checked by the engine itself; here the bounds against an attack."""
    network, x = _library(name)
    engine = Native(network, x)
    image, eps = x[:1].double(), torch.tensor([1e-5], dtype=torch.float64)
    row = torch.zeros(1, 2, engine.model(image).shape[1], dtype=torch.float64)
    row[0, 0, 0] = row[0, 1, 1] = 1.0
    row[0, 0, 1] = row[0, 1, 0] = -1.0
    low = [
        ascend(lambda z, r=r: -(engine.model(z) * row[:, r]).sum(1), Balls(image, eps, Norm.LINF), steps=3)
        for r in (0, 1)
    ]
    with torch.no_grad():
        clean = (engine.model(image) @ row[0].T)[0]
        least = torch.stack([(engine.model(z) @ row[0].T)[0] for z in low]).amin(0)
    for method in ("ibp", "crown-ibp", *(("crown",) if name in SMALL else ())):
        bound = engine.ask(Balls(image, eps, Norm.LINF), row, method).bound[0]
        assert not bound.isnan().any(), f"{method}: nan"
        assert (bound <= least + 1e-9).all(), f"{method}: {bound} broken by {least}"
        assert method != "crown" or (clean - bound <= 1.2 * (clean - least) + 1e-9).all(), (
            f"{method}: {clean - bound} where the network falls by {clean - least}"
        )


#: Networks that plain CROWN bounds within a second.
SMALL = ("certkd mlp", "certkd cnn", "one axis", "sequence first", "timm vit")


def test_a_profiler_that_runs_goes_on() -> None:
    profiler = cProfile.Profile()
    profiler.enable()
    try:
        watch(nn.Linear(2, 2).eval(), torch.rand(1, 2))
        sum([1, 2])
    finally:
        profiler.disable()
    names = {str(entry.code) for entry in profiler.getstats()}
    assert any("sum" in name for name in names), "the profiler saw nothing after the capture"
