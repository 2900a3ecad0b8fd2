"""alpha-CROWN's free lines: entries of small layers have lines of their own, those of large layers share them."""

import pytest
import torch
from torch import nn

from tests.zoo import Kind, mlp
from verifiers.bound_propagation.native import bounds
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

KIND = Kind("", lambda: mlp((6, 20, 20, 20, 3)), (6,))


def margins(count: int = 2, norm: Norm = Norm.L1) -> torch.Tensor:
    network, x = KIND.network(seed=2), KIND.images(2, seed=1).double()[:count]
    engine = Native(network, KIND.images(2))
    rows = margin_specification(torch.zeros(count, dtype=torch.long), 3, torch.float64)
    ball = Balls(x, torch.full((count,), 1.0 if norm is Norm.L1 else 0.3, dtype=torch.float64), norm)
    return engine.ask(ball, rows, "alpha-crown", iterations=10).bound


@pytest.mark.parametrize("norm", [Norm.L1, Norm.LINF], ids=str)
def test_lines_of_their_own_bound_more(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    own = margins(norm=norm)
    monkeypatch.setattr(bounds, "OWN_LINES", 20 * 20 - 1)
    shared = margins(norm=norm)
    assert (own > shared + 0.02).all(), f"own {own.tolist()}, shared {shared.tolist()}"
    monkeypatch.setattr(bounds, "OWN_LINES", 20 * 20)
    torch.testing.assert_close(margins(norm=norm), own, atol=0.0, rtol=0.0)


def test_lines_of_a_sample_are_not_those_of_another() -> None:
    torch.testing.assert_close(margins(2)[:1], margins(1), atol=1e-6, rtol=1e-6)


def test_nodes_before_every_nonlinearity_are_bounded_by_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = nn.Sequential(
            nn.Linear(5, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
        )
    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(1))
    engine, starts = Native(network.eval(), x), []
    lower = bounds.Bounds.lower
    monkeypatch.setattr(
        bounds.Bounds, "lower", lambda run, start, *more: (starts.append(start), lower(run, start, *more))[1]
    )
    rows = margin_specification(torch.zeros(2, dtype=torch.long), 3, torch.float64)
    balls = Balls(x.double(), torch.full((2,), 0.3, dtype=torch.float64), Norm.LINF)
    plain = engine.ask(balls, rows, "crown").bound
    starts.clear()
    found = engine.ask(balls, rows, "alpha-crown", iterations=5).bound
    first, second = sorted(set(starts))
    assert starts.count(first) == 2 and starts.count(second) > 2 * 5  # both sides: by CROWN, and by every step
    assert (found >= plain).all() and (found > plain + 1e-3).any()
