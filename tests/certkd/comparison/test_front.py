"""Fronts: what is on them, by brute force; and the area below."""

import random

import pytest

from certkd.comparison.front import Point, area, front


def point(clean: float, certified: float, name: str = "") -> Point:
    return Point("m", name, (clean,), (certified,))


def cloud(seed: int) -> list[Point]:
    draws = random.Random(seed)
    return [point(draws.randrange(6) / 5, draws.randrange(6) / 5, str(n)) for n in range(8)]


@pytest.mark.parametrize("seed", range(20))
def test_a_point_is_on_the_front_if_no_other_is_better(seed: int) -> None:
    points = cloud(seed)
    found = front(points)
    for one in points:
        beaten = any(o.mean != one.mean and o.mean[0] >= one.mean[0] and o.mean[1] >= one.mean[1] for o in points)
        assert (one.mean in [f.mean for f in found]) != beaten
    assert len({f.mean for f in found}) == len(found), "points with the same means are there once"
    assert [f.mean[0] for f in found] == sorted((f.mean[0] for f in found), reverse=True)


@pytest.mark.parametrize("seed", range(20))
def test_area_is_the_share_of_a_grid_that_some_point_dominates(seed: int) -> None:
    points, cells = cloud(seed), [(i + 0.5) / 50 for i in range(50)]
    covered = sum(any(p.mean[0] > x and p.mean[1] > y for p in points) for x in cells for y in cells)
    assert area(points) == pytest.approx(covered / 2500, abs=1e-9)


def test_means_and_deviations_are_over_seeds() -> None:
    one = Point("m", "", (0.9, 0.7), (0.5, 0.5))
    assert one.mean == pytest.approx((0.8, 0.5)) and one.deviation == pytest.approx((0.02**0.5, 0))
    assert point(0.9, 0.5).deviation == (0, 0)


def test_area_of_nothing_certified_is_zero() -> None:
    assert area([point(0.9, 0.0)]) == 0
    assert area([point(0.5, 0.5), point(1.0, 0.25)]) == pytest.approx(0.375)
