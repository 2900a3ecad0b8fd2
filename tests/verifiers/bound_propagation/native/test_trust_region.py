"""Concave quadratic functions over cut balls: no point is below a bound, whatever the state, and bounds are close."""

import itertools

import pytest
import torch
from torch import Tensor

from verifiers.bound_propagation.native.trust_region import Directions, State, minimum
from verifiers.geometry import cut_balls

BATCH, ROWS = 3, 4


class Problem:
    """Random slopes, weights and directions; the first sample's image is black, the last one in the middle."""

    def __init__(self, pixels: int, k: int, seed: int = 0, eps: float = 0.4) -> None:
        self.random = torch.Generator().manual_seed(seed)
        x = torch.stack([torch.zeros(pixels), self.uniform(pixels).float(), torch.full((pixels,), 0.5)]).double()
        self.slopes = self.normal(BATCH, ROWS, pixels)
        self.weights = self.uniform(BATCH, ROWS, k) * (self.uniform(BATCH, ROWS, k) > 0.2)
        radii = eps * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
        self.directions = Directions.of(self.normal(BATCH, k, pixels), -x, 1 - x, radii)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.float64)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.random, dtype=torch.float64)

    def values(self, points: Tensor) -> Tensor:
        """The functions at one point of each sample."""
        bent = (self.directions.rows @ points[:, :, None])[:, None, :, 0]
        return (self.slopes @ points[:, :, None])[:, :, 0] - 0.5 * (self.weights * bent.square()).sum(2)

    def points(self, count: int) -> list[Tensor]:
        """Points of the cut balls, most of them as far out as possible."""
        found = []
        for i in range(count):
            point = self.normal(BATCH, self.slopes.shape[2])
            point = point * (self.directions.eps / point.norm(dim=1))[:, None] * (1.0 if i % 3 else 0.7)
            found.append(point.clamp(self.directions.low, self.directions.high))
        return found

    def lowest(self, rounds: int) -> tuple[Tensor, Tensor, State]:
        state = State.start(self.slopes, self.directions.eps)
        found = [minimum(self.slopes, self.weights, self.directions, state, 1) for _ in range(rounds)]
        best = torch.stack([bound for bound, _, _ in found]).amax(0)
        return best, found[-1][1], state


@pytest.mark.parametrize(("pixels", "k"), [(2, 1), (3, 5), (12, 4)])
def test_no_point_is_below_any_bound(pixels: int, k: int) -> None:
    problem = Problem(pixels, k)
    bound, _, _ = problem.lowest(10)
    assert bool(bound.isfinite().all())
    least = torch.stack([problem.values(point) for point in problem.points(400)]).amin(0)
    assert bool((least >= bound).all()), f"a point is {float((bound - least).max()):.3g} below a bound"


def test_bounds_are_near_the_minimum() -> None:
    """Two pixels, on a dense grid; faces leave a gap where the function is concave between them."""
    problem = Problem(2, 2, seed=1, eps=0.2)
    bound, _, _ = problem.lowest(30)
    grid = torch.linspace(-1, 1, 401, dtype=torch.float64)
    least = torch.full((BATCH, ROWS), torch.inf, dtype=torch.float64)
    square = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    for sample in range(BATCH):
        d, eps = problem.directions, problem.directions.eps[sample]
        inside = ((square >= d.low[sample]) & (square <= d.high[sample])).all(1) & (square.norm(dim=1) <= eps)
        bent = (square[inside] @ d.rows[sample].mT).square()
        values = square[inside] @ problem.slopes[sample].mT - 0.5 * bent @ problem.weights[sample].mT
        least[sample] = values.amin(0)
    assert bool((bound <= least).all())
    gap = (least - bound) / (1 + least.abs())
    assert float(gap[2].max()) < 0.02, "no face is in reach, and the bound is not exact"
    assert float(gap.median()) < 0.1


@pytest.mark.parametrize("multiplier", [0.0, 1e-12, 1e-3, 1.0, 1e6, float("nan"), float("inf")])
def test_a_bad_state_proves_nothing_wrong(multiplier: float) -> None:
    problem = Problem(4, 3, seed=2)
    state = State.start(problem.slopes, problem.directions.eps)
    state.multiplier = torch.full_like(state.multiplier, multiplier)
    state.point = 10 * problem.normal(*state.point.shape)
    least = torch.stack([problem.values(point) for point in problem.points(200)]).amin(0)
    for _ in range(6):
        bound, _, _ = minimum(problem.slopes, problem.weights, problem.directions, state, 1)
        assert not bool(bound.isnan().any()) and bool((bound <= least).all())


def test_a_ray_from_the_centre() -> None:
    """On a smaller ball the function is at least the mix of its value at the centre and the bound."""
    problem = Problem(4, 3, seed=3)
    state = State.start(problem.slopes, problem.directions.eps)
    bound, centre, _ = minimum(problem.slopes, problem.weights, problem.directions, state)
    assert bool((centre <= 0).all())
    for share, point in itertools.product((0.1, 0.5, 0.9), problem.points(100)):
        smaller = (point * share).clamp(problem.directions.low, problem.directions.high)
        assert bool((problem.values(smaller) >= (1 - share) * centre + share * bound - 1e-12).all())


def test_without_weights_it_is_the_linear_minimum() -> None:
    problem = Problem(6, 3, seed=4)
    problem.weights.zero_()
    bound, _, _ = problem.lowest(20)
    d = problem.directions
    each = [part.repeat_interleave(ROWS, 0) for part in (d.low, d.high, d.eps)]
    linear = cut_balls.least(problem.slopes.flatten(0, 1), *each).reshape(BATCH, ROWS)
    torch.testing.assert_close(bound, linear, rtol=1e-2, atol=1e-3)
    assert bool((bound <= linear + 1e-9).all())


def test_the_point_is_the_gradient() -> None:
    """Finite differences of the bound by a slope and by a weight, where the state has settled."""
    problem = Problem(5, 3, seed=5, eps=0.2)
    _, _, state = problem.lowest(40)
    bound, _, point = minimum(problem.slopes, problem.weights, problem.directions, state, 1)
    bent = problem.directions.times(point).square()
    step = 1e-4
    problem.slopes[2, :, 1] += step
    moved, _, _ = minimum(problem.slopes, problem.weights, problem.directions, state, 1)
    torch.testing.assert_close((moved - bound)[2] / step, point[2, :, 1], rtol=0.05, atol=0.02)
    problem.slopes[2, :, 1] -= step
    problem.weights[2, :, 0] += step
    moved, _, _ = minimum(problem.slopes, problem.weights, problem.directions, state, 1)
    torch.testing.assert_close((moved - bound)[2] / step, -0.5 * bent[2, :, 0], rtol=0.05, atol=0.02)
