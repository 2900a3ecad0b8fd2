"""Exact boxes and inequalities, and the float32 numbers around and inside them."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.verifiers.properties.milp import box, inequality
from verifiers.core.errors import InputError
from verifiers.graph.rounding import LARGEST, TINY
from verifiers.properties.property import Box, rounded_down

NUMBERS = st.fractions(min_value=-(10**6), max_value=10**6, max_denominator=10**12) | st.floats(
    width=32, allow_nan=False, allow_infinity=False
).map(Fraction)


def exact(value: np.floating) -> Fraction:
    return Fraction(float(value))


@given(NUMBERS)
def test_a_number_is_rounded_down_to_its_neighbour(value: Fraction) -> None:
    found = rounded_down(value)
    assert isinstance(found, np.float32) and exact(found) <= value
    above = np.nextafter(found, np.float32(np.inf))
    assert not np.isfinite(above) or exact(above) > value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Fraction(1, 2), 0.5),
        (Fraction(0), 0.0),
        (Fraction(TINY) / 2, 0.0),
        (-Fraction(TINY) / 2, -TINY),
        (Fraction(LARGEST), LARGEST),
        (Fraction(1) - Fraction(1, 2**60), 1 - 2.0**-24),
        (Fraction(-1) - Fraction(1, 2**60), -1 - 2.0**-23),
    ],
)
def test_numbers_rounded_down_by_hand(value: Fraction, expected: float) -> None:
    assert float(rounded_down(value)) == expected


@given(st.tuples(NUMBERS, NUMBERS).map(sorted))
def test_every_rounding_of_every_point_is_in_the_hull(ends: list[Fraction]) -> None:
    made = Box((ends[0],), (ends[1],))
    low, high = (exact(end[0]) for end in made.hull)
    assert low <= ends[0] <= ends[1] <= high
    for value in (ends[0], ends[1], (ends[0] + ends[1]) / 2):
        assert low <= exact(np.float32(float(value))) <= high, "its rounding, through float64 too"
    for end, hull in zip(ends, (low, high), strict=True):
        assert (hull == end) == (exact(np.float32(float(end))) == end), "a float32 end stays"


@given(st.tuples(NUMBERS, NUMBERS).map(sorted))
def test_inputs_to_try_are_roundings_of_points_of_the_box(ends: list[Fraction]) -> None:
    made = Box((ends[0],), (ends[1],))
    low, high = made.images
    assert low <= high
    for image in (low, high):
        (point,) = made.point(image)
        assert ends[0] <= point <= ends[1] and np.float32(float(point)) == image[0]
        assert exact(image[0]) == point or low == high, "inside the box where a float32 number is"


def test_a_box_without_float32_numbers_has_one_input() -> None:
    made = box([0.5], [0.5])
    assert made.images[0].tolist() == made.images[1].tolist() == [0.5]
    tenth = Fraction(1, 10)
    made = Box((tenth,), (tenth,))
    assert made.images[0] == np.float32(0.1) and made.point(made.images[0]) == [tenth]
    assert made.hull[0] < made.hull[1]


def test_empty_boxes_and_endless_ones() -> None:
    assert box([0.0, 1.0], [1.0, 0.5]).empty and not box([0.0], [0.0]).empty
    with pytest.raises(InputError, match="input 1 is bounded by a number beyond float32"):
        Box((Fraction(0), Fraction(0)), (Fraction(1), Fraction(10) ** 39))


@pytest.mark.parametrize(
    ("made", "x", "y", "holds"),
    [
        (inequality({0: 1}, -1), [0], [1], True),
        (inequality({0: 1}, -1, strict=True), [0], [1], False),
        (inequality({0: 1}, -1), [0], [Fraction(10**20 + 1, 10**20)], False),
        (inequality({0: 2, 1: -1}, 0.5, {0: -1}), [1], [0, 0], True),
        (inequality({0: 2, 1: -1}, 0.5, {0: -1}), [0], [0, 0], False),
        (inequality({}, 0), [], [], True),
    ],
)
def test_inequalities_hold_exactly(made: object, x: list, y: list, holds: bool) -> None:
    values = [list(map(Fraction, each)) for each in (x, y)]
    assert made.holds(*values) == holds  # type: ignore[attr-defined]
