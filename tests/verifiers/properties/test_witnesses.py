"""Counterexamples: the search for them, and what is accepted as one."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.properties.milp import box, inequality
from verifiers.properties.property import Box, Case
from verifiers.properties.spaces import half_spaces
from verifiers.properties.witnesses import MOST, Descent, WitnessSearch, holds

UNIT = box([0.0, 0.0], [1.0, 1.0])


class Product(nn.Module):
    """(x0 x1, x0 + x1); counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return torch.stack([x[:, 0] * x[:, 1], x[:, 0] + x[:, 1]], 1)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [([1.0, -1.0], True), ([1.0, 0.0], False), ([0.5, -1.0], False), ([np.nan, -1.0], False), ([np.inf, -1.0], False)],
)
def test_outputs_satisfy_a_case_in_all_of_its_inequalities(outputs: list[float], expected: bool) -> None:
    case = Case(UNIT, (inequality({0: -1}, 1), inequality({1: 1}, 0, strict=True)))
    point = [Fraction(0), Fraction(0)]
    assert holds([case], point, np.array(outputs, np.float32)) == expected
    assert not holds([], point, np.array(outputs, np.float32))


def test_one_case_is_enough() -> None:
    cases = [Case(UNIT, (inequality({0: 1}, 5),)), Case(UNIT, (inequality({1: 1}, 0),))]
    assert holds(cases, [Fraction(0)] * 2, np.array([0.0, -1.0], np.float32))


def test_points_are_rounded_into_the_box() -> None:
    """A side between two float32 numbers keeps its one input; others are cut at their ends."""
    thin = (Fraction(1, 10), Fraction(1, 10) + Fraction(1, 10**12))
    case = Case(Box((thin[0], Fraction(0)), (thin[1], Fraction(1))), (inequality({1: -1}, 1.0),))
    search = WitnessSearch(Product(), [case], (2,))
    hits = search.tries(torch.tensor([[9.0, 0.5], [9.0, 9.0]], dtype=torch.float64), half_spaces([case], 2, 2))
    assert hits.tolist() == [False, True] and search.found is not None
    point, image = search.found.point, search.found.image
    assert point == [thin[1], 1] and image.tolist() == [np.float32(0.1), 1.0]
    assert search.found.outputs.tolist() == [np.float32(0.1), np.float32(1.1)]


def test_only_the_nearest_points_are_checked_exactly() -> None:
    case, network = Case(UNIT, (inequality({0: -1}, 1, strict=True),)), Product()
    search = WitnessSearch(network, [case], (2,))
    points = torch.cat([torch.ones(20, 2), torch.zeros(20, 2)]).double()
    assert not search.tries(points, half_spaces([case], 2, 2)).any() and search.found is None
    assert network.runs == 1 + MOST, "one batch, then the nearest alone"


def test_a_point_is_checked_by_the_exact_rule_not_by_float64() -> None:
    """x0 x1 = 1 at the corner: not above 1, and the search must not take it."""
    search = WitnessSearch(Product(), [Case(UNIT, (inequality({0: -1}, 1, strict=True),))], (2,))
    assert not search.check(torch.ones(2)) and search.found is None and not search.doubt
    closed = WitnessSearch(Product(), [Case(UNIT, (inequality({0: -1}, 1),))], (2,))
    assert closed.check(torch.ones(2)) and closed.found is not None


@pytest.mark.parametrize(("theirs", "said"), [([0.0, 0.0], "by certkd and not"), ([9.0, 9.0], None)])
def test_both_implementations_must_agree(theirs: list[float], said: str | None) -> None:
    case = Case(UNIT, (inequality({0: -1}, 0.5),))
    calls = []

    def reference(image: np.ndarray) -> np.ndarray:
        calls.append(image)
        return np.array(theirs, np.float32)

    search = WitnessSearch(Product(), [case], (2,), reference)
    assert search.check(torch.ones(2)) == (said is None) == (search.found is not None)
    assert calls[0].tolist() == [1.0, 1.0] and calls[0].dtype == np.float32
    assert (said or "") in search.doubt and bool(search.doubt) == (said is not None)


@pytest.mark.parametrize(
    ("inequalities", "exists"),
    [
        ((inequality({0: -1}, 0.9),), True),
        ((inequality({0: -1}, 0.9), inequality({1: 1}, -1.899)), True),
        ((inequality({0: -1}, 0.9), inequality({1: 1}, -1.5)), False),
        ((inequality({0: -1, 1: 1}, -0.9), inequality({1: -1}, 0.8)), True),
        ((inequality({0: -1}, 0.2, {0: 1}),), False),
    ],
)
def test_descent_finds_points_where_there_are_some(inequalities: tuple, exists: bool) -> None:
    case = Case(UNIT, inequalities)
    search, spaces = WitnessSearch(Product(), [case], (2,)), half_spaces([case], 2, 2)
    Descent(steps=30, restarts=6)(search, spaces, math.inf)
    assert (search.found is not None) == exists
    if search.found is not None:
        assert holds([case], search.found.point, search.found.outputs)


def test_descent_visits_every_case_and_repeats_itself() -> None:
    """Of two cases the far one alone can be satisfied; equal seeds find equal points."""
    cases = [
        Case(UNIT, (inequality({1: 1}, 0.001),)),  # x0 + x1 <= -0.001: never
        Case(UNIT, (inequality({0: -1}, 0.999),)),
    ]
    spaces, found = half_spaces(cases, 2, 2), []
    for seed in (0, 0, 1):
        search = WitnessSearch(Product(), cases, (2,))
        Descent(steps=20, restarts=4, seed=seed)(search, spaces, math.inf)
        assert search.found is not None
        found.append(search.found.image.tolist())
    assert found[0] == found[1]


def test_descent_stops_when_time_is_up() -> None:
    case, network = Case(UNIT, (inequality({0: -1}, 2),)), Product()
    Descent(steps=30, restarts=6)(WitnessSearch(network, [case], (2,)), half_spaces([case], 2, 2), -math.inf)
    assert network.runs <= 1


def test_the_first_descent_takes_the_nearest_case() -> None:
    cases = [Case(UNIT, (inequality({1: 1}, 0.001),)), Case(UNIT, (inequality({0: -1}, 0.5),))]
    search = WitnessSearch(Product(), cases, (2,))
    Descent(steps=20).first(search, half_spaces(cases, 2, 2))
    assert search.found is not None and search.found.image.tolist() == [1.0, 1.0]


class Plateau(nn.Module):
    """Flat but for a corner: (relu(x0 + x1 - 3.4), 0) on a box whose upper corner has the sum 4."""

    def forward(self, x: Tensor) -> Tensor:
        peak = (x.sum(1) - 3.4).relu()
        return torch.stack([peak, torch.zeros_like(peak)], 1)


def test_a_random_search_finds_what_no_gradient_shows() -> None:
    wide = box([1.0, -1.0], [2.0, 2.0])
    cases = [Case(wide, (inequality({0: -1}, 0.05),)), Case(wide, (inequality({1: -1}, 1.0),))]
    spaces, descent = half_spaces(cases, 2, 2), Descent(steps=5, restarts=0, queries=40)
    search = WitnessSearch(Plateau(), cases, (2,))
    descent.first(search, spaces)
    descent(search, spaces, math.inf)
    assert search.found is None, "the gradient is 0 at the centre"
    descent.hunt(search, spaces, math.inf)
    assert search.found is not None and search.found.outputs[0] >= np.float32(0.05)
    assert all(low <= x <= high for low, x, high in zip(wide.low, search.found.point, wide.high, strict=True))


def test_a_random_search_finds_nothing_where_nothing_is() -> None:
    cases = [Case(UNIT, (inequality({1: -1}, 3.0),))]
    search = WitnessSearch(Product(), cases, (2,))
    Descent(queries=10).hunt(search, half_spaces(cases, 2, 2), math.inf)
    assert search.found is None and not search.doubt
