"""Rounding to codes: lines and ranges by hand, by enumeration of cells, and next to the ends of cells."""

import itertools

import pytest
import torch
from torch import Tensor

from verifiers.graph.relaxations.lines import Lines
from verifiers.graph.relaxations.staircase import EDGE, STEEPEST, Staircase

steps = Staircase(-3.0, 4.0)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def values(low: float, high: float, made: Staircase = steps) -> list[tuple[float, float]]:
    """All pairs of a point and a code that it may get: ends, both codes at every border, and points between."""
    borders = [n + 0.5 for n in range(-12, 13) if low <= n + 0.5 <= high]
    found = []
    for border in borders:
        for code in (border - 0.5, border + 0.5):
            found.append((border, min(max(code, made.low), made.high)))
    inner = [low, high, (low + high) / 2, *(n / 7 for n in range(-80, 81) if low <= n / 7 <= high)]
    found += [(x, float(made(tensor(x)))) for x in inner]
    return found


def worst(lines: Lines, pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """The least distances of the pairs from the lower and from the upper line; negative if one is crossed."""
    lower, lower_offset, upper, upper_offset = (float(each) for each in lines)
    below = min(y - lower * x - lower_offset for x, y in pairs)
    above = min(upper * x + upper_offset - y for x, y in pairs)
    return below, above


def test_it_rounds_halves_to_even_and_clamps() -> None:
    x = tensor(-9, -3.5, -2.5, -0.5, 0.5, 1.5, 2.49, 3.5, 4.6, 99)
    assert steps(x).tolist() == [-3, -3, -2, 0, 0, 2, 2, 4, 4, 4]
    assert Staircase(-3.0, 4.0, odd=True)(x).tolist() == [-3, -3, -3, -1, 1, 1, 2, 3, 4, 4]
    assert steps.ends == (-2.5, 3.5)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.5, 2.0), (0.0, 1.25), (float("nan"), 1.0)])
def test_ends_that_are_no_codes_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="low and high must be whole numbers"):
        Staircase(*ends)


#: Interval, then slope and offset of the lower and of the upper line.
BY_HAND = {
    "within one cell": ((0.6, 1.4), (0.0, 1.0), (0.0, 1.0)),
    "below the range": ((-9.0, -2.6), (0.0, -3.0), (0.0, -3.0)),
    "above the range": ((3.6, 70.0), (0.0, 4.0), (0.0, 4.0)),
    "five cells": ((-2.0, 2.0), (1.0, -0.5), (1.0, 0.5)),
    "two cells, mostly the lower": ((0.0, 0.75), (0.0, 0.0), (2.0, 0.0)),
    "two cells, mostly the upper": ((0.25, 1.0), (2.0, -1.0), (0.0, 1.0)),
    "the range and far above it": ((-2.0, 13.5), (6 / 15.0, -2 + 1.5 * 6 / 15.0), (0.0, 4.0)),
    "the range and far below it": ((-12.5, 3.0), (0.0, -3.0), (6 / 15.0, 3 - 2.5 * 6 / 15.0)),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_lines_by_hand(name: str) -> None:
    (low, high), lower, upper = BY_HAND[name]
    lines = steps.lines(tensor(low), tensor(high))
    expected = tensor(*lower, *upper)
    torch.testing.assert_close(torch.cat(list(lines)), expected, rtol=0, atol=1e-7)


GRID = [-9.0, -3.5, -3.0, -2.75, -2.5, -1.1, -0.5, 0.0, 0.3, 0.5, 0.9, 1.5, 2.0, 3.25, 3.5, 3.75, 4.5, 11.0]


@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("odd", [False, True])
def test_lines_hold_on_every_cell(alpha: float | None, odd: bool) -> None:
    """Between all pairs of points on and between borders, with both codes at a border."""
    made = Staircase(-3.0, 4.0, odd=odd)
    for low, high in itertools.combinations(GRID, 2):
        free = None if alpha is None else (tensor(alpha), tensor(alpha))
        lines = made.lines(tensor(low), tensor(high), free)
        below, above = worst(lines, values(low, high, made))
        assert below >= 0, f"the lower line on [{low}, {high}] is crossed by {-below}"
        assert above >= 0, f"the upper line on [{low}, {high}] is crossed by {-above}"
        assert max(float(lines.lower_slope), float(lines.upper_slope)) <= STEEPEST


def test_default_lines_leave_the_least_area() -> None:
    """No other sound line, of 200 slopes, is higher in the middle of the interval."""
    for low, high in itertools.combinations(GRID, 2):
        lines, pairs, middle = steps.lines(tensor(low), tensor(high)), values(low, high), (low + high) / 2
        own = float(lines.lower_slope) * middle + float(lines.lower_offset)
        best = max(
            min(y - slope * x for x, y in pairs) + slope * middle for slope in torch.linspace(0, 8, 401).tolist()
        )
        assert own >= best - 1e-6, f"on [{low}, {high}] the lower line is {own} in the middle, and {best} is sound"


def test_ranges_are_exact() -> None:
    for low, high in itertools.combinations(GRID, 2):
        least, most = (float(end) for end in steps.interval(tensor(low), tensor(high)))
        codes = [y for _, y in values(low, high)]
        assert (least, most) == (min(codes), max(codes)), f"the range on [{low}, {high}]"


def test_a_point_on_a_border_counts_for_both_cells() -> None:
    """An engine in float64 may be off by the last bits, and float32 may round the point either way."""
    point = tensor(1.5, -0.5, 0.5 - EDGE / 2)
    least, most = steps.interval(point, point)
    assert least.tolist() == [1, -1, 0] and most.tolist() == [2, 0, 1]
    lines, border = steps.lines(point, point), tensor(1.5, -0.5, 0.5)
    low, high = lines.lower_slope * border + lines.lower_offset, lines.upper_slope * border + lines.upper_offset
    assert bool((low <= least + 1e-9).all()) and bool((high >= most - 1e-9).all()), "a line ends below the border"
    assert steps.is_nonlinear(point, point).tolist() == [True] * 3


def test_steep_lines_hold_as_stored() -> None:
    """On intervals down to a thousandth of a millionth around borders, in exact arithmetic."""
    generator = torch.Generator().manual_seed(0)
    width = 10 ** (-9 * torch.rand(2000, 2, generator=generator, dtype=torch.float64))
    border = torch.randint(-2, 4, (2000,), generator=generator).double() - 0.5
    low, high = border - width[:, 0], border + width[:, 1]
    for alpha in (None, (torch.ones_like(low), torch.ones_like(low))):
        lines = steps.lines(low, high, alpha)
        for x in (low, border, high):
            for code in (steps(x - 1e-12), steps(x + 1e-12)):
                reachable = (code >= steps(low)) & (code <= steps(high))
                lower = lines.lower_slope * x + lines.lower_offset
                upper = lines.upper_slope * x + lines.upper_offset
                assert bool((lower <= code + 1e-9)[reachable].all()), "the lower line is crossed"
                assert bool((upper >= code - 1e-9)[reachable].all()), "the upper line is crossed"


def test_ends_that_are_unknown_give_the_whole_range() -> None:
    nan, far = float("nan"), 1e300
    least, most = steps.interval(tensor(nan, -far), tensor(nan, far))
    assert least.tolist() == [-3, -3] and most.tolist() == [4, 4]
    assert bool(torch.isfinite(torch.stack(list(steps.lines(tensor(-far), tensor(far))))).all())


def test_slopes_can_be_optimised() -> None:
    """The gradient of the bound in the middle reaches alpha, and no step makes a line unsound."""
    low, high = tensor(-2.0, -9.0, 0.2), tensor(2.0, 1.0, 0.9)
    alpha = tensor(0.5, 0.5, 0.5).requires_grad_()
    lines = steps.lines(low, high, (alpha, alpha))
    middle = (low + high) / 2
    gap = (lines.upper_slope * middle + lines.upper_offset - lines.lower_slope * middle - lines.lower_offset).sum()
    (gradient,) = torch.autograd.grad(gap, alpha)
    assert bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())
    assert steps.rounding(low, high, high) is None
