"""Splits of neurons of every kind: where they are, what their halves are worth, and that every half is sound."""

import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.marks import only
from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.native import alpha
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound, Outcome
from verifiers.bound_propagation.native.cells import DomainBounds
from verifiers.bound_propagation.native.domains import Domains, Splits
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.native.places import FreeLines, costs, split_points
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.operators import Elementwise, Interval, Operator
from verifiers.graph.relaxations.gelu import Gelu
from verifiers.graph.relaxations.piecewise import Clamp, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.products import Product
from verifiers.graph.relaxations.sigmoidal import Tanh


class Attention(nn.Module):
    """Softmax attention between three tokens of two numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(2, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.reshape(-1, 3, 2)).chunk(3, -1)
        return self.out(((3 * q @ k.mT).softmax(-1) @ v).flatten(1))


class Gated(nn.Module):
    """A product of a sigmoid and a linear function."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.sigmoid(self.gate(x)) * self.value(x))


def perceptron(activation: Callable[[], nn.Module]) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 5), activation(), nn.Linear(5, 5), activation(), nn.Linear(5, 2))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sigmoid": (lambda: perceptron(nn.Sigmoid), 2),
    "tanh": (lambda: perceptron(nn.Tanh), 2),
    "gelu": (lambda: perceptron(nn.GELU), 2),
    "silu": (lambda: perceptron(nn.SiLU), 2),
    "hardswish": (lambda: perceptron(nn.Hardswish), 2),
    "leaky relu": (lambda: perceptron(lambda: nn.LeakyReLU(0.2)), 2),
    "relu6": (lambda: perceptron(nn.ReLU6), 2),
    "max pool": (lambda: nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2)), 8),
    "gated": (Gated, 3),
    "attention": (Attention, 6),
}
WIDE = ("tanh", "gelu", "hardswish", "leaky relu", "gated", "attention")


def network_of(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    make, size = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = make()
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=2.5 / layer.in_features**0.5)
    return network.eval(), torch.rand(1, size, generator=torch.Generator().manual_seed(seed))


def root_of(
    name: str, eps: float, seed: int = 0, arithmetic: Arithmetic = Arithmetic.REAL
) -> tuple[nn.Module, Bounds, Tensor, Planes]:
    """A network, its bounds on a ball, and rows whose bounds alpha-CROWN has raised."""
    network, x = network_of(name, seed)
    engine = Native(network, x.repeat(2, 1), arithmetic=arithmetic)
    bounds = engine.bounds(Balls(x.double(), torch.tensor([eps], dtype=torch.float64), Norm.LINF))
    rows = torch.tensor([[[1.0, -1.0], [-1.0, 0.5]]], dtype=torch.float64)
    return network.double(), bounds, rows, alpha.optimized(bounds, rows, 3)


def points_of(bounds: Bounds, count: int = 4000) -> Tensor:
    low, high = bounds.balls.box()
    noise = torch.rand(count, low.shape[1], generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    noise[: count // 4] = noise[: count // 4].round()
    return low + noise * (high - low)


def search_of(bounds: Bounds, rows: Tensor, proved: Tensor, goal: float, seconds: float = 60.0) -> Outcome:
    def never(points: Tensor) -> Tensor:
        return torch.zeros(len(points), dtype=torch.bool)

    return BranchAndBound(bounds, rows, proved, goal, deadline=time.monotonic() + seconds, broken=never).run()


@pytest.mark.parametrize("name", only(("sigmoid", "hardswish", "gated", "attention"), NETWORKS))
def test_no_point_of_a_part_breaks_its_bound(name: str) -> None:
    """Every choice of lines and multipliers is sound: parts split at random, at random parameters."""
    network, bounds, rows, _ = root_of(name, 0.3)
    over = DomainBounds(bounds, rows)
    points = points_of(bounds)
    with torch.no_grad():
        values = network(points) @ rows[0].T
        nodes = bounds.graph.values(points)
    generator = torch.Generator().manual_seed(1)
    lines, places, count = sum(over.lines.sizes), len(over.splits), 12
    assert places > 0
    signs = torch.zeros(count, places, dtype=torch.int8)
    for domain in range(count):
        for place in torch.randperm(places, generator=generator)[:3]:
            signs[domain, place] = 1 if torch.rand(1, generator=generator) < 0.5 else -1
    row = torch.arange(count) % 2
    domains = Domains(
        row,
        torch.full((count,), -math.inf, dtype=torch.float64),
        signs,
        torch.rand(count, lines, generator=generator, dtype=torch.float64),
        2 * torch.rand(count, places, generator=generator, dtype=torch.float64) * (signs != 0),
        row[:, None],
    )
    with torch.no_grad():
        found, seen = over.glance(domains), 0
    limits = over.splits.limits(signs, over.shapes, bounds.balls.x)
    for domain in range(count):
        inside = torch.ones(len(points), dtype=torch.bool)
        for node, (low, high) in limits.items():
            inside &= ((nodes[node] >= low[domain]) & (nodes[node] <= high[domain])).flatten(1).all(1)
        seen += int(inside.sum())
        if inside.any():
            least = float(values[inside, row[domain]].min())
            assert float(found[domain]) <= least + 1e-9, f"{name}, part {domain}: {float(found[domain])} above {least}"
    assert seen > 200


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("tanh", "attention") else pytest.mark.slow) for n in WIDE]
)
def test_splits_close_the_gap_and_never_cross_it(name: str) -> None:
    """Two thirds of what alpha-CROWN leaves to the least of many points is proved, and never more than there is."""
    network, bounds, rows, planes = root_of(name, 0.05 if name == "attention" else 0.2, seed=1)
    with torch.no_grad():
        least = (network(points_of(bounds, 40_000)) @ rows[0].T).amin(0)
    row = int((least - planes.bound[0]).argmax())
    goal = float(planes.bound[0, row] + 0.67 * (least[row] - planes.bound[0, row]))
    assert least[row] > planes.bound[0, row] + 1e-3, "nothing to close"
    outcome = search_of(bounds, rows[:, row : row + 1], planes.bound[0, row : row + 1], goal)
    assert outcome.finished and outcome.domains > 0
    over = float(least[row]) + 1e-3
    refused = search_of(bounds, rows[:, row : row + 1], planes.bound[0, row : row + 1], over, seconds=0.4)
    assert not refused.finished and refused.bound <= over


def test_a_multiplier_proves_what_cutting_alone_does_not() -> None:
    """On z >= c the row -z is at most -c: cutting the interval cannot tell that of the image, a multiplier can."""
    network = nn.Sequential(nn.Linear(2, 1), nn.Tanh(), nn.Linear(1, 2))
    with torch.no_grad():
        network[0].weight[:], network[0].bias[:], network[2].bias[:] = 1.0, 0.0, 0.0
        network[2].weight[:] = torch.tensor([[1.0], [0.0]])
    x = torch.full((1, 2), 0.5)
    engine = Native(network.eval(), x.repeat(2, 1))
    bounds = engine.bounds(Balls(x.double(), torch.tensor([0.5], dtype=torch.float64), Norm.LINF))
    rows = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    with torch.no_grad():
        bounds.propagate(refine=True)
    over = DomainBounds(bounds, rows)
    middle = int((over.points == 1.0).nonzero()[0])
    signs = torch.zeros(2, len(over.splits), dtype=torch.int8)
    signs[:, middle] = 1
    beta = torch.zeros(2, len(over.splits), dtype=torch.float64)
    lines = torch.full((2, sum(over.lines.sizes)), 0.5, dtype=torch.float64)
    slope = float(torch.tanh(torch.tensor(2.0, dtype=torch.float64)) - math.tanh(1.0))  # the chord on [1, 2]
    beta[1, middle] = slope
    zero = torch.zeros(2, dtype=torch.long)
    domains = Domains(zero, torch.full((2,), -math.inf, dtype=torch.float64), signs, lines, beta, zero[:, None])
    with torch.no_grad():
        plain, forced = over.glance(domains).tolist()
    assert plain < math.tanh(1.0) - 0.1
    assert math.tanh(1.0) - 1e-9 < forced <= math.tanh(1.0)


@pytest.mark.parametrize("arithmetic", [Arithmetic.REAL, Arithmetic.FLOAT32], ids=str)
@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh], ids=["sigmoid", "tanh"])
def test_a_planted_bump_is_never_proved_away(activation: Callable[[], nn.Module], arithmetic: Arithmetic) -> None:
    """1 - 3 (s(k (x - a)) - s(k (x - b))) is 1 but for a narrow dip below 0: its row is refuted or stays open."""
    low, high = (0.0, 1.0) if activation is nn.Sigmoid else (-1.0, 1.0)
    network = nn.Sequential(nn.Linear(1, 2), activation(), nn.Linear(2, 2))
    with torch.no_grad():
        network[0].weight[:] = 4000.0
        network[0].bias[:] = torch.tensor([-4000 * 0.6180, -4000 * 0.6190])
        network[2].weight[:] = torch.tensor([[-3.0, 3.0], [0.0, 0.0]]) / (high - low)
        network[2].bias[:] = torch.tensor([1.0, 0.0])
        assert network(torch.tensor([[0.6185]]))[0].argmax() == 1
        assert (network(torch.linspace(0, 0.61, 200)[:, None]).argmax(1) == 0).all()
    x = torch.tensor([[0.5]])
    engine = Native(network.eval(), x.repeat(2, 1), arithmetic=arithmetic)
    rows = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    for eps, proved in ((0.1, True), (0.2, False)):
        bounds = engine.bounds(Balls(x.double(), torch.tensor([eps], dtype=torch.float64), Norm.LINF))
        planes = alpha.optimized(bounds, rows, 3)
        outcome = search_of(bounds, rows, planes.bound[0], 0.0, seconds=0.3)
        assert outcome.finished == proved, f"eps {eps}: {outcome}"


BOX = Interval(torch.tensor([[-2.0, 1.0, -4.0]]), torch.tensor([[6.0, 2.0, 4.0]]))


@pytest.mark.parametrize(
    ("operator", "entries", "points"),
    [
        (Elementwise(Relu()), [0, 2], [0.0, 0.0]),
        (Elementwise(LeakyRelu(0.1)), [0, 2], [0.0, 0.0]),
        (Elementwise(Clamp(-3.0, 5.0)), [0, 2], [5.0, -3.0]),
        (Elementwise(HardSwish()), [0] * 8 + [1] * 7 + [2] * 9, None),
        (Elementwise(Tanh()), [0] * 8 + [1] * 7 + [2] * 8, None),
        (Elementwise(Gelu()), [0] * 7 + [1] * 7 + [2] * 7, None),
    ],
    ids=["relu", "leaky relu", "clamp", "hardswish", "tanh", "gelu"],
)
def test_places_of_an_operator(operator: Operator, entries: list[int], points: list[float] | None) -> None:
    (mask,) = operator.inputs_to_tighten([BOX])
    chosen, values = split_points(operator, mask, BOX)
    assert chosen.tolist() == entries
    assert points is None or values.tolist() == points
    assert ((BOX.low[0][chosen] < values) & (values < BOX.high[0][chosen])).all()


def test_costs_of_a_product_are_the_gap_of_its_planes() -> None:
    """The lower and the upper plane of a b are r s away from a b in the middle of half-widths r and s."""
    sides = [
        Interval(torch.tensor([[0.0]]), torch.tensor([[4.0]])),
        Interval(torch.tensor([[1.0]]), torch.tensor([[7.0]])),
    ]
    found = costs(Product(torch.mul, (1,), (1,), (1,)), sides, torch.tensor([[-0.5]]), None)
    assert [part.tolist() for part in found] == [[[3.0]], [[3.0]]]


def test_places_of_one_neuron_are_cut_and_added_together() -> None:
    three = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    splits = Splits(((2, 1), (4, 1)), (torch.tensor([1, 1, 1]), torch.tensor([0])), (three, three[:1]))
    signs = torch.tensor([[1, 1, -1, -1], [0, 0, 0, 1]], dtype=torch.int8)
    low, high = splits.limits(signs, {1: (2,)}, three)[1]
    assert low.tolist() == [[-math.inf, 1.0], [0.0, -math.inf]]
    assert high.tolist() == [[0.0, 2.0], [math.inf, math.inf]]
    values = torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=torch.float64)
    assert splits.added(values, {1: (2,)})[1].tolist() == [[8.0, 7.0]]
    assert splits.moved(values)[1].tolist() == [1 * 0 + 2 * 1 + 4 * 2 + 8 * 0]


def test_free_lines_start_where_they_are_known() -> None:
    _, bounds, rows, _ = root_of("gated", 0.1)
    lines = FreeLines.of(bounds.graph, bounds.intervals)
    first = lines.start(bounds.graph, bounds.intervals, bounds.lines, torch.tensor([1, 0]))
    for position, sides in lines.spread(first).items():
        for side, known in zip(sides, bounds.lines[position], strict=True):
            torch.testing.assert_close(side, known[[1, 0]])
    middle = lines.start(bounds.graph, bounds.intervals, {}, torch.tensor([0]))
    assert (middle == 0.5).all() and rows.shape == (1, 2, 2)
