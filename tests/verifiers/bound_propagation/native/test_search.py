"""Searches run in float32 and are proved in float64: no lie of a search is ever a proof."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.native import backward
from verifiers.bound_propagation.native.backward import BackwardPass
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

EPS = 0.3


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 2, 2), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


@pytest.fixture(scope="module")
def engine() -> Native:
    return Native(network(3), images(2), arithmetic=Arithmetic.FLOAT32)


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(5))


def asked(engine: Native, count: int = 1, eps: float = EPS) -> tuple[Balls, Tensor]:
    x = images(count)
    with torch.no_grad():
        predicted = engine.model(x.double()).argmax(1)
    return Balls.around(x.double(), eps, Norm.LINF), margin_specification(predicted, 3, torch.float64)


def sampled(engine: Native, eps: float) -> float:
    """The least margin of many points of the ball."""
    balls, rows = asked(engine, eps=eps)
    low, high = balls.box()
    share = torch.rand(4_000, *low.shape[1:], dtype=low.dtype, generator=torch.Generator().manual_seed(0))
    share[:2_000] = share[:2_000].round()
    with torch.no_grad():
        return float((engine.model(low + share * (high - low)) @ rows[0].T).min())


def lying(monkeypatch: pytest.MonkeyPatch, lie: Callable[[Tensor], Tensor]) -> list[torch.dtype]:
    """Make every bound in float32 a lie; return the dtypes of all bounds."""
    minimum, seen = BackwardPass.minimum, list[torch.dtype]()

    def lied(run: BackwardPass, back: backward.BackwardRows, *, with_planes: bool) -> Planes:
        found = minimum(run, back, with_planes=with_planes)
        seen.append(found.bound.dtype)
        if found.bound.dtype == torch.float64:
            return found
        return Planes(lie(found.bound), lie(found.value), found.steepness, found.rounding)

    monkeypatch.setattr(BackwardPass, "minimum", lied)
    return seen


LIES = {
    "too good": lambda bound: bound + 1e3,
    "infinite": lambda bound: bound + math.inf,
    "nan": lambda bound: bound * math.nan,
    "negated": lambda bound: -bound,
}


@pytest.mark.parametrize("lie", LIES)
def test_a_search_that_lies_proves_nothing_by_alpha_crown(
    engine: Native, monkeypatch: pytest.MonkeyPatch, lie: str
) -> None:
    balls, rows = asked(engine)
    crown, least = engine.ask(balls, rows, "crown").bound, sampled(engine, EPS)
    seen = lying(monkeypatch, LIES[lie])
    found = engine.ask(balls, rows, "alpha-crown", iterations=2).bound
    assert found.dtype == torch.float64 and torch.float32 in seen
    assert (found >= crown).all() and float(found.min()) <= least + 1e-9, lie


def test_the_search_runs_in_float32_and_the_proof_in_float64(engine: Native) -> None:
    balls, rows = asked(engine)
    bounds = engine.bounds(balls)
    with torch.no_grad():
        bounds.propagate(refine=True)
        coarse = bounds.coarse()
        assert coarse is not None and coarse.balls.x.dtype == torch.float32
        assert all(end.dtype == torch.float32 for box in coarse.intervals for end in box)
        assert coarse.noise is not None and all(e.dtype == torch.float32 for e in coarse.noise.errors.values())
        exact, rough = bounds.by_rows(rows).bound, coarse.by_rows(rows.float()).bound
        again = coarse.coarse()
    assert exact.dtype == torch.float64 and rough.dtype == torch.float32
    torch.testing.assert_close(rough.double(), exact, atol=1e-4, rtol=1e-4)
    assert again is None  # a graph in float32 is not searched in float32 once more


@pytest.mark.parametrize("method", ["crown", "alpha-crown"])
def test_blocks_change_nothing(engine: Native, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    balls, rows = asked(engine, 3)
    whole = engine.ask(balls, rows, method, iterations=2)
    monkeypatch.setattr(backward, "block_of", lambda widest: 7)
    parts = engine.ask(balls, rows, method, iterations=2)
    torch.testing.assert_close(parts.bound, whole.bound, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(parts.rounding, whole.rounding, atol=1e-6, rtol=1e-4)
