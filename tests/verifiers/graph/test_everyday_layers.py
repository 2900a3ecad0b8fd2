"""Ordinary layers of people's networks: their graph is the network, its bounds hold, and so does their rounding."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from tests.certifying import certify
from tests.marks import thin
from tests.verifiers.graph.float32 import deployed, outside
from tests.verifiers.graph.nets import Fn, Net
from tests.zoo import images
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.graph.capture import capture
from verifiers.graph.program import Program

FLAT, IMAGE, TABLE, SIGNAL = (8,), (2, 4, 4), (3, 4), (2, 8)
Make = Callable[[], nn.Module]
L, Seq = nn.Linear, nn.Sequential


def two(function: Callable[[Tensor, Tensor], Tensor]) -> Make:
    """A function of two linear layers of the image."""
    return lambda: Net(lambda n, x: n.c(function(n.a(x), n.b(x))), a=L(8, 6), b=L(8, 6), c=L(6, 3))


def one(function: Callable[[Tensor], Tensor], width: int = 6) -> Make:
    """A function of a linear layer of the image."""
    return lambda: Net(lambda n, x: n.c(function(n.a(x))), a=L(8, 6), c=L(width, 3))


def maps(function: Callable[[Tensor], Tensor], width: int) -> Make:
    """A function of a convolution of the image."""
    return lambda: Net(lambda n, x: n.c(function(n.a(x)).flatten(1)), a=nn.Conv2d(2, 5, 3), c=L(width, 3))


LAYERS: dict[str, tuple[tuple[int, ...], Make]] = {
    "F.normalize": (FLAT, one(lambda h: F.normalize(h.relu() + 0.1, dim=1))),
    "F.normalize by sums": (FLAT, one(lambda h: F.normalize(h, p=1.0, dim=1))),
    "largest magnitude": (
        FLAT,
        one(lambda h: h / (torch.linalg.vector_norm(h, ord=float("inf"), dim=1, keepdim=True) + 1)),
    ),
    "norm": (FLAT, one(lambda h: torch.cat([h, h.norm(dim=1, keepdim=True)], 1), 7)),
    "maximum": (FLAT, two(torch.maximum)),
    "patches": (IMAGE, maps(lambda h: F.unfold(h.tanh(), 2), 20)),
    "patches with strides and zeros around": (IMAGE, maps(lambda h: F.unfold(h, 2, padding=1, stride=2).relu(), 80)),
    "windows of a tensor": (IMAGE, maps(lambda h: h.tanh().unfold(2, 2, 1).movedim(1, -1), 20)),
    "swapped axes": (IMAGE, maps(lambda h: h.swapaxes(1, 2).relu(), 20)),
    "shuffled channels": (IMAGE, maps(lambda h: F.channel_shuffle(h.relu(), 5), 20)),
    "diagonal": (IMAGE, maps(lambda h: h.diagonal(dim1=2, dim2=3).tanh(), 10)),
    "minimum": (FLAT, two(torch.minimum)),
    "maximum with a constant": (FLAT, one(lambda h: torch.maximum(h, torch.tensor([0.1, -0.2, 0.3, 0.0, 0.5, -1.0])))),
    "max of two": (FLAT, two(lambda a, b: torch.max(a, b) - torch.min(a, b))),
    "broadcast maximum": (FLAT, two(lambda a, b: torch.maximum(a, b[:, :1]))),
    "clamp by values": (
        FLAT,
        two(lambda a, b: a.clamp(min=b.mean(1, keepdim=True), max=b.mean(1, keepdim=True) + 0.5)),
    ),
    "clamp by a tensor": (FLAT, one(lambda h: h.clamp(min=torch.tensor(-0.1), max=torch.tensor(0.25)))),
    "amax": (IMAGE, maps(lambda h: h.amax((2, 3)), 5)),
    "amin with axes": (IMAGE, maps(lambda h: h - h.amin((2, 3), keepdim=True), 20)),
    "max along an axis": (TABLE, lambda: Net(lambda n, x: n.c(n.a(x).max(1).values), a=L(4, 5), c=L(5, 3))),
    "max of all axes": (
        TABLE,
        lambda: Net(lambda n, x: n.c((x - x.amax((1, 2), keepdim=True)).flatten(1)), c=L(12, 3)),
    ),
    "MaxPool1d": (
        SIGNAL,
        lambda: Seq(nn.Conv1d(2, 5, 3), nn.MaxPool1d(2, padding=1, dilation=2, stride=3), nn.Flatten(), L(10, 3)),
    ),
    "AdaptiveMaxPool2d": (IMAGE, lambda: Seq(nn.Conv2d(2, 5, 2), nn.AdaptiveMaxPool2d((2, 1)), nn.Flatten(), L(10, 3))),
    "AdaptiveMaxPool1d": (SIGNAL, lambda: Seq(nn.AdaptiveMaxPool1d(3), nn.Flatten(), L(6, 3))),
    "InstanceNorm1d": (
        SIGNAL,
        lambda: Seq(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3, affine=True), nn.Flatten(), L(18, 3)),
    ),
    "InstanceNorm2d": (IMAGE, lambda: Seq(nn.InstanceNorm2d(2), nn.Flatten(), L(32, 3))),
    "InstanceNorm with statistics": (
        IMAGE,
        lambda: Seq(nn.InstanceNorm2d(2, affine=True, track_running_stats=True), nn.Flatten(), L(32, 3)),
    ),
    "RMSNorm": (FLAT, lambda: Seq(L(8, 6), nn.RMSNorm(6), L(6, 3))),
    "RMSNorm with epsilon": (FLAT, lambda: Seq(L(8, 6), nn.RMSNorm(6, eps=1e-3, elementwise_affine=False), L(6, 3))),
    "einsum with weights": (
        TABLE,
        lambda: Net(lambda n, x: n.b(torch.einsum("bij,kj->bik", x, n.a.weight).flatten(1)), a=L(4, 5), b=L(15, 3)),
    ),
    "einsum of two values": (
        TABLE,
        lambda: Net(
            lambda n, x: n.b(torch.einsum("bij,bkj->bik", n.a(x), n.c(x)).flatten(1)), a=L(4, 5), c=L(4, 5), b=L(9, 3)
        ),
    ),
    "einsum with dots": (
        TABLE,
        lambda: Net(lambda n, x: n.b(torch.einsum("...j,kj->...k", x, n.a.weight).flatten(1)), a=L(4, 2), b=L(6, 3)),
    ),
    "einsum that sums": (
        TABLE,
        lambda: Net(
            lambda n, x: n.b(torch.einsum("bij,bkl->bjl", n.a(x), n.c(x)).flatten(1)), a=L(4, 2), c=L(4, 2), b=L(4, 3)
        ),
    ),
    "einsum with a constant made on the way": (
        FLAT,
        one(lambda h: torch.einsum("bi,ij->bj", h.relu(), torch.eye(6) + torch.full((6, 6), 0.1))),
    ),
    "einsum with a computed weight": (
        FLAT,
        lambda: Net(
            lambda n, x: n.c(torch.einsum("bi,ji->bj", x, F.normalize(n.a.weight, dim=1))), a=L(8, 5), c=L(5, 3)
        ),
    ),
    "std": (FLAT, one(lambda h: (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 0.1))),
    "var": (FLAT, one(lambda h: (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + 0.1))),
    "var_mean": (
        FLAT,
        one(lambda h: h * torch.var_mean(h, 1, keepdim=True)[0] + torch.var_mean(h, 1, keepdim=True)[1]),
    ),
    "std of an image": (IMAGE, maps(lambda h: h / (h.std((1, 2, 3), keepdim=True) + 0.1), 20)),
    "x ** 3": (FLAT, one(lambda h: h**3)),
    "x ** 4": (FLAT, one(lambda h: h**4)),
    "x ** 2.5": (FLAT, one(lambda h: (h.sigmoid() + 0.1) ** 2.5)),
    "x ** 0.3": (FLAT, one(lambda h: (h.sigmoid() + 0.1) ** 0.3)),
    "x ** -2": (FLAT, one(lambda h: (h.sigmoid() + 0.5) ** -2)),
    "where": (FLAT, one(lambda h: torch.where(h > 0, h, 0.1 * h))),
    "where with constants": (
        FLAT,
        one(lambda h: torch.where(h >= 0.1, h, torch.zeros(())) + torch.where(h < 0, 1.0, h)),
    ),
    "a constant mask": (FLAT, one(lambda h: torch.where(torch.arange(6) > 2, h, 2 * h.relu()))),
    "masked_fill": (FLAT, one(lambda h: h.masked_fill(h <= 0, 0.5))),
    "a mask of 0 and 1": (FLAT, one(lambda h: h * (h > 0).float() + h * ~(h > 0.3))),
    "a comparison of two values": (FLAT, two(lambda a, b: torch.where(a > b, a, b))),
    "x.float()": (FLAT, lambda: Net(lambda n, x: n.c(x.float()), c=L(8, 3))),
    "Resize": (IMAGE, lambda: Seq(transforms.Resize(3, antialias=True), nn.Flatten(), L(18, 3))),
    "Resize to more": (IMAGE, lambda: Seq(transforms.Resize(7, antialias=True), nn.Flatten(), L(98, 3))),
    "bicubic": (
        IMAGE,
        lambda: Net(lambda n, x: n.c(F.interpolate(x, size=(3, 6), mode="bicubic").flatten(1)), c=L(36, 3)),
    ),
    "GLU": (FLAT, lambda: Seq(L(8, 6), nn.GLU(), L(3, 3))),
    "cumsum": (FLAT, one(lambda h: h.relu().cumsum(1))),
    "expand_as": (FLAT, one(lambda h: h - h.mean(1, keepdim=True).expand_as(h) + h[:, :3].repeat(1, 2).view_as(h))),
    "torchvision v1": (
        IMAGE,
        lambda: Seq(
            transforms.Normalize((0.4, 0.5), (0.2, 0.3)),
            nn.Conv2d(2, 3, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Flatten(),
            L(12, 3),
        ),
    ),
    "torchvision v2": (IMAGE, lambda: Seq(v2.Normalize((0.4, 0.5), (0.2, 0.3)), nn.Flatten(), L(32, 3))),
    "an empty sequence": (FLAT, lambda: Seq(nn.Sequential(), L(8, 3))),
    "constants made in forward": (FLAT, one(lambda h: (h - torch.tensor([0.1] * 6)) / torch.full((6,), 0.3))),
    "transposed signals": (
        SIGNAL,
        lambda: Seq(
            nn.Conv1d(2, 3, 3, padding="same"), nn.ReLU(), nn.ConvTranspose1d(3, 2, 2, stride=2), nn.Flatten(), L(32, 3)
        ),
    ),
}


class Plain(nn.Module):
    """Filters that are plain tensors, as ``.to()`` and ``.double()`` leave them."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.matrix = torch.ones(1, 1, 2, 2) / 4, torch.eye(3) * 2
        self.net = Seq(nn.Flatten(), L(9, 6), nn.ReLU(), L(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.net(F.conv2d(x[:, :1], self.kernel)), self.matrix) @ self.matrix


LAYERS["plain tensors"] = (IMAGE, Plain)


@cache
def subject(name: str) -> tuple[nn.Module, Tensor]:
    """A network of the table with fixed weights, and six images."""
    shape, make = LAYERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = make().eval()
        for module in network.modules():
            if isinstance(module, nn.InstanceNorm1d | nn.InstanceNorm2d | nn.RMSNorm) and module.weight is not None:
                nn.init.normal_(module.weight)
    return network.requires_grad_(False), images(shape, 6)


@pytest.mark.parametrize("name", thin(LAYERS, every=6))
def test_float32_and_points_of_balls_are_inside_the_bounds(name: str) -> None:
    network, x = subject(name)
    program = Program(network)
    _float32_is_inside(network, program, x)
    _points_are_inside(program, x)


def _float32_is_inside(network: nn.Module, program: Program, x: Tensor) -> None:
    """What torch computes in float32 is within the noise of the graph."""
    graph, captured = program.graph(x), program.capture(x)
    box, exact = deployed(graph, x, x), graph(x.double())
    torch.testing.assert_close(exact, captured.exact(x.double()), rtol=1e-9, atol=1e-11)
    for found in (captured.module(x), torch.cat([captured.module(image[None]) for image in x])):
        assert outside(box, found) <= 1, f"outside by {outside(box, found):.3g} half-widths"
    torch.testing.assert_close(captured.whole(x), network(x), rtol=1e-4, atol=1e-5)
    half, size = float(box.half_width.max()), float(exact.abs().max().clamp_min(1.0))
    assert half < 0.02 * size, f"boxes of half-width {half:.3g} around logits of {size:.3g} say nothing"


def _points_are_inside(program: Program, x: Tensor) -> None:
    """IBP and CROWN in float32 arithmetic are below what the deployed program gives at corners and random points."""
    engine = Native(program, x[:2], arithmetic=Arithmetic.FLOAT32)
    module = program.capture(x).module
    eps = torch.tensor([1e-7, 1e-4, 1e-2, 0.05, 0.2, 0.5], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    rows = torch.cat([eye, -eye]).expand(6, -1, -1)
    generator = torch.Generator().manual_seed(1)
    share = torch.rand((200, *x.shape), generator=generator) * 2 - 1
    share[:100] = share[:100].sign()
    points = (x + share * eps.float().reshape(-1, *(1,) * (x.dim() - 1)) * (1 - 1e-6)).clamp(0, 1)
    values = module(points.flatten(0, 1)).double().unflatten(0, points.shape[:2])
    least = torch.cat([values, -values], -1).amin(0)
    for method in ("ibp", "crown"):
        bound = engine.ask(Balls(x.double(), eps, Norm.LINF), rows, method).bound
        over = (bound - least).max()
        assert bool((bound <= least).all()), f"{method}: a point is below its bound by {float(over):.3g}"
        assert bool(torch.isfinite(bound[:2]).all()), f"{method} says nothing about small balls"


@pytest.mark.parametrize("name", ["F.normalize", "std", "where"])
def test_they_are_certified(name: str) -> None:
    network, x = subject(name)
    found = certify(network, x[:2], network(x[:2]).argmax(1), eps=0.0005, methods=("crown",))["crown"]
    assert (found["status"] == Status.CERTIFIED).any(), found.attributes.get("reason")


def test_mean_and_variance_of_all_entries() -> None:
    """``var_mean(x, unbiased)`` has no axes; a truth value is no axis."""
    network = Net(lambda n, x: n.c(x * torch.var_mean(x, False)[0] + torch.var_mean(x, False)[1]), c=L(8, 3)).eval()
    image = images(FLAT, 1).double()
    torch.testing.assert_close(capture(network.double(), image)(image), network(image))


def test_the_networks_differ_in_what_they_compute() -> None:
    """The float64 copy of RMS normalisation keeps the epsilon of float32."""
    x = images(FLAT, 2)
    small = Program(Seq(nn.RMSNorm(8), L(8, 3)).eval().requires_grad_(False))
    x = x * 1e-4
    captured = small.capture(x)
    torch.testing.assert_close(captured.exact(x.double()).float(), captured.module(x), rtol=1e-4, atol=1e-5)


# Refusals


def refused(network: nn.Module, shape: tuple[int, ...] = FLAT) -> str:
    x = images(shape, 2)
    network.eval()(x)
    with pytest.raises(Unsupported) as caught:
        Native(network, x)
    return str(caught.value)


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a third power norm": (lambda h: h / h.norm(p=3, dim=1, keepdim=True), "the norm of order 3"),
    "an infinite constant": (lambda h: torch.where(h > 0, h, -torch.inf).exp(), "a constant that is not finite"),
    "a variance of one number": (lambda h: h[:, :1] / (h[:, :1].var(1, keepdim=True) + 1), "too few numbers"),
    "indices": (lambda h: h.max(1, keepdim=True).indices * h, "its result 1 has no bounds"),
    "a changing exponent": (lambda h: 2.0**h, "pow"),
    "truth values that are added": (lambda h: h * ((h > 0) + (h > 0.2)), "sum of truth values"),
    "a mask of rounded constants": (
        lambda h: torch.where(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).exp().sin() > 0.9, h, -h),
        "constants that float32 rounds",
    ),
    "a mask by a rounded number": (
        lambda h: torch.where(torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]) > 0.1, h, -h),
        "constants that float32 rounds",
    ),
    "a softmax in half precision": (lambda h: h.softmax(1, dtype=torch.bfloat16).float(), "in half precision"),
    "a sum in half precision": (lambda h: h.sum(1, keepdim=True, dtype=torch.float16).float(), "in half precision"),
    "constants in half precision": (
        lambda h: h * (torch.tensor([0.1, 0.7], dtype=torch.float16) * 0.3).float().repeat(3),
        "in half precision",
    ),
    "einsum of three values": (lambda h: torch.einsum("bi,bi,bi->bi", h, h, h), "more than two values"),
    "einsum of a diagonal": (
        lambda h: torch.einsum("bii,bj->bij", h[:, :, None].expand(-1, -1, 6), h).sum(1),
        "a repeated axis",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_bounds_is_refused_with_its_line(name: str) -> None:
    function, reason = REFUSED[name]
    said = refused(Net(lambda n, x: n.c(function(n.a(x))), a=L(8, 6), c=nn.LazyLinear(3)))
    assert reason in said, said
    assert "return self.function(self, x)" in said, f"the line of forward is not named: {said}"


def test_a_mask_that_is_read_from_constants_is_no_obstacle() -> None:
    network = one(lambda h: h * (torch.tensor([1.0, 0, 1, 0, 1, 1]) > 0.5))().eval()
    assert Native(network, images(FLAT, 2)).graph.classes == 3


def test_a_copy_in_another_module_has_the_same_graph() -> None:
    network, x = subject("where")
    again = copy.deepcopy(network)
    assert Program(network).capture(x).sha256 == Program(again).capture(x).sha256
    assert isinstance(Fn(torch.relu), nn.Module)
