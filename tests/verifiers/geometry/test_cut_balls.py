"""Linear functions over balls cut at a box: against sampled points, a bisection, and known cases."""

import pytest
import torch
from torch import Tensor

from verifiers.geometry.cut_balls import least

ROWS, PIXELS = 12, 5


def problem(seed: int, reach: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes, faces and radii; some pixels are black, some white."""
    random = torch.Generator().manual_seed(seed)
    x = torch.rand((ROWS, PIXELS), generator=random, dtype=torch.float64)
    x = torch.where(x < 0.3, 0.0, torch.where(x > 0.8, 1.0, x))
    slopes = torch.randn((ROWS, PIXELS), generator=random, dtype=torch.float64)
    eps = reach * (0.1 + torch.rand(ROWS, generator=random, dtype=torch.float64))
    return slopes, -x, 1 - x, eps


def attained(slopes: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> float:
    """The value of one row at a point of the cut ball that a bisection finds: the minimum, or slightly above it."""
    corner = torch.where(slopes > 0, low, high)
    if float(corner.norm()) <= float(eps):
        return float(slopes @ corner)
    near, far = 0.0, 1e6
    for _ in range(200):
        middle = (near + far) / 2
        short = float((-slopes / middle).clamp(low, high).norm()) <= float(eps)
        near, far = (near, middle) if short else (middle, far)
    return float(slopes @ (-slopes / far).clamp(low, high))


@pytest.mark.parametrize("reach", [0.05, 0.5, 3.0])
def test_the_bound_is_the_minimum(reach: float) -> None:
    given = problem(0, reach)
    found = least(*given)
    for row in range(ROWS):
        truth = attained(*(part[row] for part in given))
        assert found[row] <= truth + 1e-9, f"row {row}: {found[row]} is above the minimum {truth}"
        assert found[row] >= truth - 1e-4 * (1 + abs(truth)), f"row {row}: {found[row]} is far below {truth}"


def test_no_point_is_below_the_bound() -> None:
    slopes, low, high, eps = problem(1, 0.6)
    found = least(slopes, low, high, eps)
    random = torch.Generator().manual_seed(2)
    for _ in range(200):
        point = torch.randn((ROWS, PIXELS), generator=random, dtype=torch.float64)
        point = (point * (eps / point.norm(dim=1))[:, None]).clamp(low, high)
        assert bool(((slopes * point).sum(1) >= found - 1e-12).all())


def test_faces_out_of_reach_and_balls_out_of_reach() -> None:
    slopes, low, high, _ = problem(3, 1.0)
    small, large = torch.full((ROWS,), 0.1, dtype=torch.float64), torch.full((ROWS,), 10.0, dtype=torch.float64)
    wide = torch.full_like(low, 5.0)
    torch.testing.assert_close(least(slopes, -wide, wide, small), -0.1 * slopes.norm(dim=1))
    corner = torch.where(slopes > 0, low, high)
    torch.testing.assert_close(least(slopes, low, high, large), (slopes * corner).sum(1))


def test_nothing_to_minimise() -> None:
    """No slopes, no radius: the value at the centre."""
    slopes, low, high, eps = problem(4, 0.5)
    zero = torch.zeros(ROWS, dtype=torch.float64)
    assert bool((least(torch.zeros_like(slopes), low, high, eps) == 0).all())
    torch.testing.assert_close(least(slopes, low, high, zero), zero, atol=1e-12, rtol=0)


def test_black_pixels_only_get_brighter() -> None:
    """A black pixel with a positive slope adds nothing."""
    slopes = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    low, high = torch.tensor([[0.0, -1.0]], dtype=torch.float64), torch.ones((1, 2), dtype=torch.float64)
    assert float(least(slopes, low, high, torch.tensor([0.2], dtype=torch.float64))) == pytest.approx(-0.8)


def test_gradients_are_the_minimum() -> None:
    """By the envelope theorem, the derivative by the slopes is the point where the function is least."""
    slopes, low, high, eps = problem(5, 0.5)
    slopes.requires_grad_(True)
    found = least(slopes, low, high, eps)
    (point,) = torch.autograd.grad(found.sum(), slopes)
    assert bool((point >= low - 1e-9).all()) and bool((point <= high + 1e-9).all())
    assert bool((point.norm(dim=1) <= eps * (1 + 1e-3)).all())
    torch.testing.assert_close((slopes * point).sum(1).detach(), found.detach(), rtol=1e-3, atol=1e-4)
