"""Float32 bounds hold for every network whose nodes are off by their errors, and the deviation covers the distance."""

import pytest
import torch
from torch import Tensor, nn

from tests.marks import thin
from tests.verifiers.graph.nets import CASES
from tests.zoo import ZOO, Kind, mlp
from verifiers.bound_propagation.engines import engine_of
from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.rounding import deviation
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls, per_sample, random_start
from verifiers.geometry.margins import margin_specification

#: Errors grow by this, so that a node without its error cannot hide behind loose bounds.
MORE = 2.0**14
FLOAT32, REAL = Arithmetic.FLOAT32, Arithmetic.REAL


class Coarse:
    """An operator whose errors are ``MORE`` times as large."""

    def __init__(self, operator: object) -> None:
        self.operator = operator

    def __call__(self, *given: object) -> Tensor | None:
        error = self.operator(*given)  # type: ignore[operator]
        return None if error is None else error * MORE


def coarse(network: nn.Module, x: Tensor) -> Native:
    """The native engine in a float32 with shorter numbers."""
    engine = Native(network, x, arithmetic=FLOAT32)
    for node in engine.graph.nodes[1:]:
        node.operator.rounding = Coarse(node.operator.rounding)  # type: ignore[union-attr, method-assign]
    return engine


def noisy(bounds: Bounds, x: Tensor, random: torch.Generator) -> list[Tensor]:
    """The values of all nodes of a network that is off by its largest errors, with random signs."""
    assert bounds.noise is not None
    found = [x.reshape(len(x), *bounds.graph.nodes[0].shape)]
    for position, node in enumerate(bounds.graph.nodes[1:], start=1):
        assert node.operator is not None
        value = node.operator.forward(*(found[i] for i in node.inputs))
        if position in bounds.noise.errors:
            sign = torch.randint(0, 2, value.shape, generator=random).double() * 2 - 1
            value = value + sign * bounds.noise.errors[position] / (1 + 2.0**-10)
        found.append(value)
    return found


def points(x: Tensor, eps: Tensor, norm: Norm, random: torch.Generator) -> Tensor:
    """Corners of linf balls, random points of others."""
    delta = random_start(x, eps, norm, random)
    return (x + (delta.sign() * per_sample(eps, x) if norm is Norm.LINF else delta)).clamp(0, 1)


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2])
@pytest.mark.parametrize("kind", thin(ZOO, every=4), ids=lambda kind: kind.name)
@pytest.mark.thin(3)
def test_every_bound_holds_for_a_network_with_noise(kind: Kind, norm: Norm) -> None:
    network, x, random = kind.network(), kind.images(3), torch.Generator().manual_seed(0)
    engine = coarse(network, x)
    with torch.no_grad():
        predicted = engine.model(x.double()).argmax(1)
    rows = margin_specification(predicted, engine.graph.classes, torch.float64)
    eps = torch.tensor([0.001, 0.02, 0.1], dtype=torch.float64) * (1 if norm is Norm.LINF else 3)
    bounds = engine.bounds(Balls(x.double(), eps, norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
        assert not bounds.overflows and bounds.noise is not None and bounds.noise.errors
        low, apart = [bounds.by_rows(rows), bounds.by_intervals(rows)], deviation(bounds, rows)
    intervals, errors = bounds.intervals, bounds.noise
    low.append(optimized(engine.bounds(Balls(x.double(), eps, norm)), rows, 3))
    assert bool((low[0].rounding > 0).all()), "the rows lose nothing"
    for trial in range(40):
        at = points(x.double(), eps, norm, random) if trial else x.double()
        bounds.noise = errors
        values = noisy(bounds, at, random)
        for position, (box, value) in enumerate(zip(intervals, values, strict=True)):
            slack = 1e-12 * (1 + value.abs())
            outside = (box.low - value - slack).clamp_min(0) + (value - box.high - slack).clamp_min(0)
            assert not outside.any(), f"node {position} leaves its interval by {float(outside.max()):.3g}"
        logits, exact = values[-1].flatten(1), engine.graph(at)
        margins, clean = (torch.einsum("brc,bc->br", rows, each) for each in (logits, exact))
        for planes in low:
            assert bool((planes.bound <= margins + 1e-12).all()), "a margin below its bound"
        away = ((margins - clean).abs() - apart).max()
        assert float(away) <= 1e-12, f"farther from the exact network than its deviation by {float(away):.3g}"


@pytest.mark.parametrize("name", thin(CASES, every=12))
@pytest.mark.thin(3)
def test_the_deviation_covers_noise_in_every_operator(name: str) -> None:
    network, random = CASES[name].network(), torch.Generator().manual_seed(1)
    x = CASES[name].images(2)
    engine = coarse(network, x)
    rows = torch.eye(engine.graph.classes, dtype=torch.float64).expand(2, -1, -1)
    bounds = engine.bounds(Balls.around(x.double(), 1e-3, Norm.LINF))
    with torch.no_grad():
        bounds.propagate(refine=True)
        try:
            apart = deviation(bounds, rows)
        except Unsupported as refusal:
            assert "no bound" in str(refusal) or "jump" in str(refusal) or "falls" in str(refusal)
            return
        if bounds.overflows:
            return
        for _ in range(20):
            at = points(x.double(), bounds.balls.eps, Norm.LINF, random)
            away = (noisy(bounds, at, random)[-1].flatten(1) - engine.graph(at)).abs() - apart
            assert float(away.max()) <= 1e-12, f"beyond the deviation by {float(away.max()):.3g}"


def test_rounding_of_one_layer_is_its_error() -> None:
    network, x = mlp((4, 3)).eval(), torch.rand(2, 4)
    engine = Native(network, x, arithmetic=FLOAT32)
    weight, bias = (value.double() for value in network[1].parameters())
    balls = Balls.around(x.double(), 0.1, Norm.LINF)
    largest = (x.double() + 0.1).clamp(0, 1)
    share = 5 * 2.0**-24 / (1 - 5 * 2.0**-24)  # four weights and a bias
    error = share * (largest @ weight.abs().T + bias.abs())
    rows = margin_specification(torch.tensor([0, 1]), 3, torch.float64)
    expected = torch.einsum("brc,bc->br", rows.abs(), error)
    planes = engine.ask(balls, rows, "crown")
    exact = Native(network, x).ask(balls, rows, "crown")
    torch.testing.assert_close(planes.rounding, expected, rtol=2e-3, atol=1e-12)
    torch.testing.assert_close(exact.bound - planes.bound, expected, rtol=2e-3, atol=1e-12)
    torch.testing.assert_close(engine.deviation(balls, rows), expected, rtol=2e-3, atol=1e-12)
    assert not exact.rounding.any() and not Native(network, x).deviation(balls, rows).any()


@pytest.mark.parametrize("method", ["ibp", "crown", "alpha-crown"])
def test_bounds_in_float32_are_slightly_below_those_over_the_real_numbers(method: str) -> None:
    network, x = mlp((6, 8, 8, 3)).eval(), torch.rand(3, 6)
    balls = Balls.around(x.double(), 0.02, Norm.LINF)
    rows = margin_specification(network(x).argmax(1), 3, torch.float64)
    real, rounded = (Native(network, x, arithmetic=a).ask(balls, rows, method) for a in (REAL, FLOAT32))
    lost = real.bound - rounded.bound
    assert bool((lost > 1e-8).all()) and bool((lost < 1e-4).all()), f"rounding takes {lost.tolist()}"


@pytest.mark.parametrize("name", ["native", "auto-lirpa"])
def test_a_ball_on_which_a_value_may_overflow_has_no_bound(name: str) -> None:
    network = mlp((2, 2, 2)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1e38, 0.0], [0.0, 1.0]]))
        network[1].bias.copy_(torch.tensor([2e38, 0.0]))
        network[3].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
    x = torch.tensor([[0.1, 0.8], [0.9, 0.8], [0.1, 0.8]])
    try:
        engine = engine_of(name, network, x, FLOAT32)
    except Unsupported as missing:
        pytest.skip(str(missing))
    rows = margin_specification(torch.zeros(3).long(), 2, torch.float64)
    eps = torch.tensor([0.1, 0.1, 2.0], dtype=torch.float64)
    planes = engine.ask(Balls(x.double(), eps, Norm.LINF), rows, "crown")
    assert bool((planes.bound[:2] > 0).all()) or name == "auto-lirpa"
    network[1].weight.data[0, 0] = 3e38
    planes = engine_of(name, network, x, FLOAT32).ask(Balls(x.double(), eps, Norm.LINF), rows, "crown")
    assert planes.rounding.flatten().tolist()[1] == float("inf") and planes.bound[1, 0] == -float("inf")
    assert not bool((planes.bound[1:] > 0).any()), "an overflow is certified"
