"""Formulas of float32 errors: constants, counts and overflow."""

from fractions import Fraction
from math import inf
from typing import Any

import numpy as np
import pytest
import torch

from verifiers.core.errors import Unsupported
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering import LOWERINGS
from verifiers.graph.rounding import (
    LARGEST,
    NORMAL,
    TINY,
    UNIT,
    accumulated,
    common_value,
    gamma,
    magnitude,
    representable,
    steps_of,
)


def test_constants_are_those_of_float32() -> None:
    info = np.finfo(np.float32)
    assert (float(info.smallest_subnormal), float(info.tiny), float(info.max)) == (TINY, NORMAL, LARGEST)
    assert np.float32(1) + np.float32(UNIT) == 1, "half an ulp of 1 must round to even"
    assert np.float32(1) + np.float32(UNIT * (1 + 2**-10)) > 1


@pytest.mark.parametrize("steps", [0, 1, 2, 9, 1000, 10**6])
def test_gamma_is_not_below_its_exact_value(steps: int) -> None:
    share = steps * Fraction(UNIT)
    exact = share / (1 - share)
    found = float(gamma(steps))
    assert exact <= Fraction(found) <= exact * (1 + Fraction(1, 10**8))


def test_gamma_covers_a_chain_of_roundings() -> None:
    for steps in (1, 5, 40):
        worst = max(abs((1 + sign * Fraction(UNIT)) ** steps - 1) for sign in (1, -1))
        assert worst <= Fraction(float(gamma(steps))) <= 2 * worst


def test_too_many_roundings_have_no_bound() -> None:
    assert gamma(2**23) == inf
    assert gamma(torch.tensor([1, 2**23 - 1, 2**24])).isinf().tolist() == [False, False, True]


def test_what_may_overflow_has_no_bound() -> None:
    size = torch.tensor([[0.0, 1.0, LARGEST / 2, LARGEST, inf, torch.nan]], dtype=torch.float64)
    assert accumulated(size, 3).isinf().tolist() == [[False, False, False, True, True, True]]
    assert accumulated(size, 0).isinf().tolist() == [[False, False, False, False, True, True]]
    assert accumulated(size, 3, largest=4.0).isinf().tolist() == [[False, False, True, True, True, True]]


def test_an_error_is_at_least_that_of_underflow() -> None:
    size = torch.zeros(1, 2, dtype=torch.float64)
    assert accumulated(size, 5, tiny=3.0).min() >= 3 * TINY
    assert (accumulated(size, 5, tiny=0.0) == 0).all()


def test_magnitudes() -> None:
    low, high = torch.tensor([[-3.0, 1.0, -inf]]), torch.tensor([[2.0, 4.0, 0.0]])
    assert magnitude((low, high)).tolist() == [[3.0, 4.0, inf]]


def test_float32_numbers_are_recognised() -> None:
    assert representable(0.5) and representable(-3) and representable(float(np.float32(0.1))) and representable(inf)
    assert not representable(0.1) and not representable(torch.tensor([1.0, 0.1], dtype=torch.float64))
    assert not representable(1e-60) and representable(TINY)


def test_products_with_constants_are_counted() -> None:
    signs = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    assert [steps_of(value) for value in (1, -1.0, signs, 0.5, 0.1, signs / 3)] == [0, 0, 0, 1, 2, 2]


def test_constants_beyond_float32_have_no_bound() -> None:
    assert gamma(steps_of(1e39)) == gamma(steps_of(torch.tensor([1.0, -inf]))) == inf
    assert steps_of(LARGEST) == 1


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("mul", (1e39,)),
        ("mul", (1e-40,)),
        ("div", (1e39,)),
        ("div", (-1e-40,)),
        ("mul", (inf,)),
        ("add", (Ref(0, (2,)), 1e39)),
    ],
)
def test_numbers_that_float32_rounds_to_infinity_or_nothing_are_refused(kind: str, given: tuple[Any, ...]) -> None:
    """x * 1e-10 * 1e39 is infinite in float32, and x / 1e39 * 1e38 is 0."""
    builder = Builder(torch.zeros(1, 2, dtype=torch.float64))
    more = {"alpha": given[1]} if kind == "add" else {}
    with pytest.raises(Unsupported, match="which float32 does not hold"):
        LOWERINGS[kind](builder, Ref(0, (2,)), *given[:1], **more)
    LOWERINGS["div"](builder, Ref(0, (2,)), 3e38)
    LOWERINGS["mul"](builder, Ref(0, (2,)), 0)


@pytest.mark.parametrize("steps", [1, 65, 2**23])
def test_one_number_of_roundings_and_the_same_number_for_each_entry_give_the_same_error(steps: int) -> None:
    size = torch.tensor([0.0, 1.0, 1e30, 3.4e38, torch.inf, torch.nan], dtype=torch.float64)
    each = torch.full((6,), steps)
    assert torch.equal(accumulated(size, steps, tiny=steps), accumulated(size, each, tiny=each))
    assert common_value(each) == steps and common_value(torch.tensor([steps, 0])).tolist() == [steps, 0]  # type: ignore[union-attr]
