"""Softmax as a reciprocal sum of exponentials: the same values, sound and tighter bounds, no overflow."""

import math

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.program import Program
from verifiers.graph.relaxations.softmax import CAP, Softmax, SoftmaxOfSum
from verifiers.graph.softmax_parts import MOST, CappedExp, with_softmax_in_parts


class Scores(nn.Module):
    """Softmax of scaled linear scores over one axis of a (4, 3) map, then a mean with signs."""

    def __init__(self, scale: float, axis: int = -1) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.scale, self.axis = scale, axis
        self.scores, self.out = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scale * self.scores(x).reshape(-1, 4, 3)
        return self.out(scores.softmax(self.axis).flatten(1))


def images(count: int = 2) -> Tensor:
    return torch.rand(count, 5, generator=torch.Generator().manual_seed(1))


def bounds(engine: Native, eps: float, method: str = "crown") -> tuple[Balls, Tensor]:
    x = images().double()
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double().expand(2, 6, 3)
    balls = Balls(x, torch.full((2,), eps, dtype=torch.float64), Norm.LINF)
    return balls, engine.ask(balls, rows, method, iterations=4).bound


@pytest.mark.parametrize("axis", [-1, 1])
def test_the_parts_are_the_softmax(axis: int) -> None:
    graph = Program.of(Scores(2.0, axis).eval()).graph(images())
    parts = with_softmax_in_parts(graph)
    assert any(type(node.operator) is SoftmaxOfSum for node in parts.nodes)
    assert not any(type(node.operator) is Softmax for node in parts.nodes)
    x = images(7).double()
    torch.testing.assert_close(parts(x), graph(x))
    found = next(i for i, node in enumerate(parts.nodes) if type(node.operator) is SoftmaxOfSum)
    total = parts.values(x)[parts.nodes[found].inputs[0]]
    torch.testing.assert_close(1 / total, parts.values(x)[found])  # the sum of parts, not the scores alone


def test_large_and_absent_softmaxes_stay() -> None:
    plain = Program.of(nn.Sequential(nn.Linear(5, 3))).graph(images())
    assert with_softmax_in_parts(plain) is plain
    n = math.isqrt(2 * MOST) + 2
    wide = Program.of(nn.Sequential(nn.Linear(5, n), nn.Softmax(-1), nn.Linear(n, 3))).graph(images())
    assert with_softmax_in_parts(wide) is wide


@pytest.mark.parametrize("arithmetic", [Arithmetic.REAL, Arithmetic.FLOAT32], ids=str)
@pytest.mark.parametrize("scale", [1.0, 15.0, 400.0, 1e4])
def test_no_point_breaks_a_bound(scale: float, arithmetic: Arithmetic) -> None:
    model = Scores(scale, 1 if scale == 15 else -1).eval()
    engine = Native(model, images(), arithmetic=arithmetic)
    for eps in (1e-3, 0.1, 0.4):
        for method in ("crown", "alpha-crown") if eps == 0.1 else ("crown", "ibp"):
            balls, low = bounds(engine, eps, method)
            low_box, high_box = balls.box()
            noise = torch.rand(400, 2, 5, generator=torch.Generator().manual_seed(5)).double()
            noise[:200] = noise[:200].round()
            points = low_box + noise * (high_box - low_box)
            values = engine.model(points.flatten(0, 1)).reshape(400, 2, 3)
            least = torch.cat([values.amin(0), -values.amax(0)], 1)
            assert torch.isfinite(low).all()
            assert (low <= least + 1e-12).all(), f"scale {scale}, {method}, eps {eps}: {(low - least).max()}"


def test_bounds_are_tighter_than_those_of_the_jacobian() -> None:
    program = Program.of(Scores(3.0).eval())
    engine, plain = Native(program, images()), Native(program, images())
    plain.graph = program.graph(images())
    for eps, times in ((0.05, 0.7), (0.2, 0.7)):
        found, before = (bounds(one, eps)[1] for one in (engine, plain))
        values = engine.model(images().double())
        gap, old = (torch.cat([values, -values], 1) - low for low in (found, before))
        assert (gap <= old + 1e-9).all()
        assert gap.mean() < times * old.mean(), f"eps {eps}: {gap.mean() / old.mean()}"


@pytest.mark.parametrize("sign", [1, -1])
def test_lines_of_capped_exponentials(sign: int) -> None:
    curve = CappedExp(sign)
    low = torch.tensor([-3.0, -1.0, 0.0, 15.0, -40.0, 19.0, -900.0], dtype=torch.float64)
    high = torch.tensor([2.0, -1.0, 0.5, 19.0, 40.0, 30.0, 900.0], dtype=torch.float64)
    low, high = (low, high) if sign > 0 else (-high, -low)
    x = low + torch.linspace(0, 1, 101, dtype=torch.float64)[:, None] * (high - low)
    y = (sign * x).clamp_max(CAP).exp()
    least, most = curve.interval(low, high)
    assert ((least <= y) & (y <= most)).all()
    for alpha in (None, *((torch.full_like(low, a),) * 2 for a in (0.0, 0.3, 1.0))):
        lines = curve.lines(low, high, alpha)
        assert all(torch.isfinite(part).all() for part in lines)
        assert (lines.lower_slope * x + lines.lower_offset <= y).all()
        assert (lines.upper_slope * x + lines.upper_offset >= y).all()
