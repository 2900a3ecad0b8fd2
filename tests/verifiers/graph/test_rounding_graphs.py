"""Errors of whole graphs, node by node: what torch computes in float32 is inside the boxes, however it is computed."""

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from tests.marks import only, thin
from tests.verifiers.graph.float32 import deployed, outside
from tests.verifiers.graph.nets import CASES, Fn, Net
from tests.zoo import mlp
from verifiers.graph.affine import Reshape
from verifiers.graph.capture import capture
from verifiers.graph.difference import coupled


def evaluations(network: nn.Module, x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Compute the logits of every image alone, in batches, on two threads and with channels last."""
    threads = torch.get_num_threads()
    with torch.no_grad():
        yield "alone", torch.cat([network(image[None]) for image in x])
        yield "together", network(x)
        yield "in a batch of 64", network(x.repeat(-(-64 // len(x)), *(1,) * (x.ndim - 1)))[: len(x)]
        torch.set_num_threads(2)
        try:
            yield "on two threads", network(x)
        finally:
            torch.set_num_threads(threads)
        if x.ndim == 4 and not any(isinstance(module, Fn) for module in network.modules()):
            last = copy.deepcopy(network).to(memory_format=torch.channels_last)
            yield "channels last", last(x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", thin(CASES, every=4))
@pytest.mark.thin(5)
def test_what_torch_computes_is_inside(name: str) -> None:
    network, x = CASES[name].network(), CASES[name].images(6)
    graph = capture(network, x[:1])
    box = deployed(graph, x, x)
    exact = graph(x.double())
    assert outside(box, exact) <= 1, "the exact logits are outside"
    for how, logits in evaluations(network, x):
        assert outside(box, logits) <= 1, f"{how}: outside by {outside(box, logits):.3g} half-widths"
    half, size = float(box.half_width.max()), float(exact.abs().max().clamp_min(1.0))
    assert half < 0.02 * size, f"boxes of half-width {half:.3g} around logits of {size:.3g} say nothing"


@pytest.mark.parametrize("name", only(["conv stride", "gelu", "group norm", "fused attention", "batch norm"], CASES))
def test_what_torch_computes_on_a_ball_is_inside(name: str) -> None:
    network, x = CASES[name].network(1), CASES[name].images(2)
    low, high = (x - 1e-3).clamp_min(0.0), (x + 1e-3).clamp_max(1.0)
    box = deployed(capture(network, x[:1]), low, high)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ends = torch.rand(x.shape, generator=generator) < 0.5
        with torch.no_grad():
            logits = network(torch.where(ends, low, high))
        assert outside(box, logits) <= 1, f"outside by {outside(box, logits):.3g} half-widths"


@pytest.mark.parametrize("size", [1e4, 1e8, 1e12])
def test_cancelling_weights_are_as_wrong_as_the_bound_allows(size: float) -> None:
    """Two neurons of huge weights whose difference is one pixel: float32 loses it, and the box says so."""
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[size, 1.0], [size, 0.0]]))
        second.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    network = nn.Sequential(first, second).eval()
    x = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    graph = capture(network, x[:1])
    box, exact = deployed(graph, x, x), graph(x.double())
    with torch.no_grad():
        found = network(x)
    lost = float((found - exact).abs().max())
    assert outside(box, found) <= 1
    assert lost > min(0.9, 0.5 * size * 2**-24), "nothing is lost"
    if size < 1e8:
        assert lost >= float(box.half_width.max()) / 50, f"{lost:.3g} of {float(box.half_width.max()):.3g}"


def test_logits_that_overflow_have_no_bound() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.fill_(1e30)
        network[2].weight.copy_(torch.tensor([[1e30, -1e30], [1.0, 1.0]]))
    x = torch.ones(1, 2)
    box = deployed(capture(network, x), x, x)
    with torch.no_grad():
        assert not bool(network(x)[0, 0].isfinite())
    assert box.half_width.isfinite().tolist() == [[False, True]]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_networks_of_odd_scales(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [3, *torch.randint(2, 40, (int(torch.randint(1, 5, (), generator=generator)),), generator=generator), 3]
    network = mlp([int(size) for size in sizes]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            scale = 10 ** (8 * torch.rand((), generator=generator) - 4)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) ** 5 * scale)
    x = torch.rand(64, 3, generator=generator)
    box = deployed(capture(network, x[:1]), x, x)
    for how, logits in evaluations(network, x):
        assert outside(box, logits) <= 1, f"{how}: outside by {outside(box, logits):.3g} half-widths"


# Two networks of one architecture


def _permuted(network: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function of other weights: hidden neurons change places, so float32 adds in another order."""
    other, generator = copy.deepcopy(network), torch.Generator().manual_seed(seed)
    layers = [module for module in other if isinstance(module, nn.Linear)]
    with torch.no_grad():
        for first, second in pairwise(layers):
            order = torch.randperm(first.out_features, generator=generator)
            first.weight.copy_(first.weight[order])
            first.bias.copy_(first.bias[order])
            second.weight.copy_(second.weight[:, order])
    return other


@pytest.mark.parametrize("changed", [False, True])
def test_the_difference_of_two_networks_holds_the_rounding_of_both(changed: bool) -> None:
    teacher = mlp((6, 40, 40, 3)).eval()
    student = copy.deepcopy(teacher)
    if changed:
        with torch.no_grad():
            student[-1].weight += 0.01
    x = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    graph = coupled(capture(student, x[:1]), capture(teacher, x[:1]))
    difference = graph.nodes[-1].inputs[2]
    box = deployed(graph, x, x, difference)
    apart = []
    for seed in range(10):
        with torch.no_grad():
            ours, theirs = _permuted(student, seed)(x), _permuted(teacher, seed + 50)(x)
        assert outside(box, ours.double() - theirs.double()) <= 1
        apart.append(float((ours - theirs).abs().max()))
    assert max(apart) > 0, "no order of summation makes a difference"
    assert float(box.half_width.max()) < 1e-4
    if not changed:
        exact = coupled(capture(student, x[:1]), capture(teacher, x[:1]), rounded=False)
        assert len(exact.nodes[-1].inputs) == 1, "over the reals copies do not differ"


# Constants that the network computes at run time


def _lost(net: nn.Module, x: Tensor) -> Tensor:
    """1e8 + w - 1e8 is w, and 0 in float32."""
    return x * (net.weight[:1] + 1e8 - 1e8)


def _standardised(net: nn.Module, x: Tensor) -> Tensor:
    weight = net.weight - net.weight.mean(1, keepdim=True)
    return F.linear(x, weight / (weight.square().mean(1, keepdim=True) + 1e-5).sqrt(), net.bias * 0.1)


CONSTANTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "a factor that cancels": _lost,
    "a shift that cancels": lambda net, x: x - (net.weight[:1] * 0.3 + 1e8 - 1e8),
    "a divisor": lambda net, x: x / (torch.exp(net.weight[0]) + 0.1),
    "a number after a shift": lambda net, x: (x + 0.1) * 0.3 - 0.7,
    "a gate": lambda net, x: x * torch.sigmoid(net.weight[:1] * 3.0) + F.softplus(net.weight[:1]),
    "a standardised weight": _standardised,
    "a low-rank weight": lambda net, x: x @ (net.weight + 0.25 * (net.weight @ net.weight.mT) @ net.weight),
    "joined": lambda net, x: torch.cat([x, (net.weight / 3.0)[:1].expand(len(x), -1)], 1),
    "filled": lambda net, x: x + x.new_full((6,), 0.1) * torch.full((6,), 0.7),
}


def _of_constants(name: str) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(6, 6, generator=generator), torch.randn(6, generator=generator)
    return Net(CONSTANTS[name], weight=weight, bias=bias).eval()


@pytest.mark.parametrize("name", CONSTANTS)
def test_computed_constants_are_as_wrong_as_float32_makes_them(name: str) -> None:
    network, x = _of_constants(name), torch.rand(5, 6, generator=torch.Generator().manual_seed(1))
    graph = capture(network, x[:1])
    box, exact = deployed(graph, x, x), graph(x.double())
    for how, logits in evaluations(network, x):
        assert outside(box, logits) <= 1, f"{how}: outside by {outside(box, logits):.3g} half-widths"
    half = float(box.half_width.max())
    limit = 50.0 if name.endswith("cancels") else 1e-4 * float(exact.abs().max().clamp_min(1.0))
    assert half < limit, f"{name}: {half:.3g}"


@pytest.mark.parametrize("norm", thin([weight_norm, spectral_norm], every=1), ids=lambda norm: norm.__name__)
def test_normalised_weights_have_a_bound(norm: Callable[[nn.Module], nn.Module]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(norm(nn.Linear(6, 5)), nn.ReLU(), norm(nn.Linear(5, 3))).eval()
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    box = deployed(capture(network, x[:1]), x, x)
    for how, logits in evaluations(network, x):
        assert outside(box, logits) <= 1, f"{how}: outside by {outside(box, logits):.3g} half-widths"
    assert float(box.half_width.max()) < 1e-4


def test_constants_without_a_bound_have_none() -> None:
    """An operator of constants that has no lowering, and a constant slope, are bounded over the reals only."""

    def cumulated(net: nn.Module, x: Tensor) -> Tensor:
        return x * net.weight.cumprod(1)[:1]

    def sloped(net: nn.Module, x: Tensor) -> Tensor:
        return F.prelu(x - 0.5, net.weight[0] * 0.1)

    for function in (cumulated, sloped):
        network = Net(function, weight=torch.randn(6, 6, generator=torch.Generator().manual_seed(0))).eval()
        x = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
        graph = capture(network, x[:1])
        assert torch.allclose(graph(x.double()), network.double()(x.double()))
        assert bool(deployed(graph, x, x).half_width.isinf().all()), function.__name__


def test_weights_and_their_views_are_exact() -> None:
    network = Net(lambda net, x: x * net.weight.T.reshape(-1)[:6].expand(1, 6).clone(), weight=torch.randn(6, 6)).eval()
    graph = capture(network, torch.rand(1, 6))
    assert all(getattr(node.operator, "perturbation", None) is None for node in graph.nodes)


def test_a_numbers_own_rounding_is_counted() -> None:
    """x + 0.1 - 0.1 is x; float32's own 0.1 is 1.5e-9 off, which only counts as the constant that it is."""
    network, x = nn.Sequential(Fn(lambda x: x + 0.1)).eval(), torch.zeros(1, 3)
    box = deployed(capture(network, x), x, x)
    assert outside(box, network(x)) <= 1 and float(box.half_width.max()) < 2e-8


def test_a_plain_sequence_has_the_errors_of_its_export() -> None:
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)]
    plain, x = nn.Sequential(*layers).eval(), torch.rand(2, 2, 6, 6)
    exported = Net(lambda net, x: net.body(x), body=plain).eval()
    boxes = [deployed(capture(network, x[:1]), x, x) for network in (plain, exported)]
    assert torch.equal(boxes[0].low, boxes[1].low) and torch.equal(boxes[0].high, boxes[1].high)
    assert isinstance(capture(plain, x[:1]).nodes[3].operator, Reshape)
