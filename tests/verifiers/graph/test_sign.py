"""The sign's lines and range by hand, on random intervals, and in a binarised network."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.relaxations.sign import STEEPEST, Sign

sign = Sign()


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_lines_by_hand() -> None:
    """On [-1, 4] the lower line goes from (0, -1) to (4, 1), on [-4, 1] the upper one from (-4, -1) to (0, 1)."""
    low, high = tensor(-1, -4, 1, -2, 0, -3, 0), tensor(4, 1, 2, -1, 2, 0, 0)
    lines = sign.lines(low, high)
    torch.testing.assert_close(lines.lower_slope, tensor(0.5, 0, 0, 0, 0, 0, 0))
    torch.testing.assert_close(lines.upper_slope, tensor(0, 0.5, 0, 0, 0, 0, 0))
    assert lines.lower_offset.tolist() == [-1, -1, 1, -1, 0, -1, 0]
    assert lines.upper_offset.tolist() == [1, 1, 1, -1, 1, 0, 0]
    assert [end.tolist() for end in sign.interval(low, high)] == [[-1, -1, 1, -1, 0, -1, 0], [1, 1, 1, -1, 1, 0, 0]]
    assert sign.is_nonlinear(low, high).tolist() == [True, True, False, False, True, True, False]
    assert sign.rounding(low, high, high) is None


@pytest.mark.parametrize("alpha", [None, 0.0, 0.37, 1.0])
def test_lines_hold_as_stored(alpha: float | None) -> None:
    """On intervals of all widths, at both sides of 0 and at the ends, in exact arithmetic."""
    generator = torch.Generator().manual_seed(3)
    exponents = 120 * torch.rand(3000, 2, generator=generator, dtype=torch.float64) - 100
    ends = 10**exponents * torch.randn(3000, 2, generator=generator, dtype=torch.float64).sign()
    low, high = ends.amin(1), ends.amax(1)
    free = None if alpha is None else (torch.full_like(low, alpha),) * 2
    lines = sign.lines(low, high, free)
    tiny = torch.full_like(low, 5e-324)
    points = [low, high, low / 2 + high / 2, tiny.clamp(low, high), (-tiny).clamp(low, high), 0 * tiny]
    for x in points:
        inside = (low <= x) & (x <= high)
        for slope, offset, side in ((*lines[:2], 1), (*lines[2:], -1)):
            gap = side * (torch.sign(x) - offset) - side * slope * x  # the first difference is exact
            assert bool((gap[inside] >= 0).all()), f"the line is crossed at {x[inside][gap[inside] < 0][:3].tolist()}"
    assert lines.lower_slope.max() <= STEEPEST and bool(torch.isfinite(torch.stack(lines)).all())


def test_bounds_of_a_binarised_network_hold_on_a_grid() -> None:
    """Two layers of signs over two pixels: all bounds contain the values on a grid, and some sign is open."""
    torch.manual_seed(0)
    first, second = nn.Linear(2, 5), nn.Linear(5, 3)

    class Binarised(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return second(torch.sign(torch.sign(first(x - 0.5)) + 0.1))

    x, eps = torch.tensor([[0.4, 0.6], [0.1, 0.9]]), 0.3
    network = Binarised()
    network.first, network.second = first, second
    engine, balls = Native(network, x), Balls.around(x.double(), eps, Norm.LINF)
    steps = torch.linspace(-eps, eps, 61)
    grid = torch.tensor(list(itertools.product(steps.tolist(), repeat=2)))
    eye = torch.eye(3, dtype=torch.float64)
    for method in ("ibp", "crown", "alpha-crown"):
        low, high = (sense * engine.ask(balls, sense * eye.expand(2, 3, 3), method).bound for sense in (1, -1))
        for i in range(2):
            with torch.no_grad():
                values = network((x[i] + grid).clamp(0, 1)).double()
            assert bool((values >= low[i] - 1e-6).all()) and bool((values <= high[i] + 1e-6).all()), method
            assert float((values.amax(0) - values.amin(0)).max()) > 0.1, "no sign changes in the ball"
