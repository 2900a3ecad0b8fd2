"""The ascent of domains: both ways to its gradient agree, it stays sound, and its result is proved elsewhere."""

import math
import time
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.bound_propagation.native.test_search import LIES, lying
from verifiers.bound_propagation.native import ascent
from verifiers.bound_propagation.native.ascent import ByAutograd, ByValues, ascended
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.cells import DomainBounds
from verifiers.bound_propagation.native.domains import Domains
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.native.pace import Pace
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls

ROWS = torch.tensor([[[1.0, -1.0, 0.0], [1.0, 0.5, -1.0]]], dtype=torch.float64)


class Residual(nn.Module):
    """A convolution, a block with a shortcut, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Conv2d(3, 3, 3, padding=1)
        self.hidden, self.last = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        y = torch.relu(y + self.block(y))
        return self.last(torch.relu(self.hidden(y.flatten(1))))


@cache
def over_of(
    norm: Norm = Norm.LINF, network: nn.Module | None = None, arithmetic: Arithmetic = Arithmetic.REAL
) -> DomainBounds:
    """Bounds over domains of a small residual network, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = (network or Residual()).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=1.6 / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 0.1)
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    engine = Native(network, x.repeat(2, 1, 1, 1), arithmetic=arithmetic)
    bounds = engine.bounds(Balls.around(x.double(), 0.2 if norm is Norm.LINF else 0.8, norm))
    with torch.no_grad():
        bounds.propagate(refine=True)
    return DomainBounds(bounds, ROWS)


def random_domains(over: DomainBounds, count: int, splits: int = 3) -> Domains:
    """Domains split at random neurons, with random parameters."""
    generator = torch.Generator().manual_seed(3)
    places, lines = len(over.splits), sum(over.lines.sizes)
    assert places > 2 * splits
    signs = torch.zeros(count, places, dtype=torch.int8)
    for domain in range(count):
        for place in torch.randperm(places, generator=generator)[:splits]:
            signs[domain, place] = 1 if torch.rand(1, generator=generator) < 0.5 else -1
    alpha = torch.rand(count, lines, generator=generator, dtype=torch.float64)
    beta = 0.3 * torch.rand(count, places, generator=generator, dtype=torch.float64) * (signs != 0)
    row, bound = torch.arange(count) % 2, torch.full((count,), -math.inf, dtype=torch.float64)
    return Domains(row, bound, signs, alpha, beta, torch.arange(places).repeat(count, 1))


def test_the_gradient_by_values_is_that_of_automatic_differentiation() -> None:
    over = over_of()
    domains = random_domains(over, 12)
    cells, _ = over.cut(domains)
    assert ByValues.suits(over)
    (exact, one), (found, other) = (way(over, list(cells))(domains, last=False) for way in (ByAutograd, ByValues))
    assert one is not None and other is not None
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other.alpha, one.alpha, rtol=1e-7, atol=1e-9)
    split = domains.signs != 0
    torch.testing.assert_close(other.beta[split], one.beta[split], rtol=1e-7, atol=1e-9)
    assert one.alpha.abs().max() > 1e-3 and one.beta[split].abs().max() > 1e-3


def test_other_balls_and_other_functions_are_differentiated_automatically() -> None:
    tanh = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))
    assert not ByValues.suits(over_of(Norm.L2)) and not ByValues.suits(over_of(network=tanh))


@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L2], ids=str)
def test_the_ascent_raises_bounds_and_stays_in_range(norm: Norm) -> None:
    over = over_of(norm)
    domains = random_domains(over, 8)
    with torch.no_grad():
        found = ascended(over, domains, math.inf, Pace(math.inf), 6)
        before, after = over.glance(domains), over.glance(found)
    assert (after >= before).all() and float((after - before).mean()) > 0.05
    assert found.alpha.min() >= 0 and found.alpha.max() <= 1 and found.beta.min() >= 0
    assert (found.beta[domains.signs == 0] == 0).all(), "a place that is not split has no multiplier"


def test_parts_above_the_goal_leave_and_change_nothing_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    over = over_of()
    domains = random_domains(over, 12)
    with torch.no_grad():
        goal = float(over.glance(ascended(over, domains, math.inf, Pace(math.inf), 3)).median()) - 0.01
        left = ascended(over, domains, goal, Pace(math.inf), 6)
        monkeypatch.setattr(ascent, "LEAVE", 2.0)
        stayed = ascended(over, domains, goal, Pace(math.inf), 6)
        bounds = over.glance(left), over.glance(stayed)
    open_ = bounds[1] <= goal
    assert 2 < int(open_.sum()) < 10
    torch.testing.assert_close(bounds[0][open_], bounds[1][open_])
    assert (bounds[0][~open_] > goal).all()


def test_no_step_follows_a_deadline() -> None:
    over = over_of()
    domains = random_domains(over, 4)
    with torch.no_grad():
        same = ascended(over, domains, math.inf, Pace(time.monotonic() - 1), 6)
    assert torch.equal(same.alpha, domains.alpha) and torch.equal(same.beta, domains.beta)


@pytest.mark.parametrize("lie", LIES)
def test_a_search_that_lies_proves_nothing(monkeypatch: pytest.MonkeyPatch, lie: str) -> None:
    """The goal is above the row at a point of the ball: no lie in float32 makes it proved."""
    over = over_of(arithmetic=Arithmetic.FLOAT32)
    low, high = over.root.balls.box()
    share = torch.rand(4000, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).round()
    least = float((over.graph(low + share * (high - low)) @ ROWS[0].T).amin())
    seen = lying(monkeypatch, LIES[lie])
    proved = torch.full((2,), -1e6, dtype=torch.float64)
    run = BranchAndBound(
        over.root, ROWS, proved, least + 1e-3, deadline=time.monotonic() + 0.3, broken=lambda z: torch.zeros(len(z)) > 0
    )
    end = run.run()
    assert not end.finished and end.bound <= least + 1e-9, f"{lie}: {end}"
    assert torch.float32 in seen and torch.float64 in seen
