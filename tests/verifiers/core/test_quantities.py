"""Exact radii and norms as people write them, and what a row of a file is worth."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from verifiers.core.columns import COMMON_COLUMNS, Column
from verifiers.core.errors import InputError
from verifiers.core.noise import Noise
from verifiers.core.quantities import Epsilon, Norm, parse_norm, parse_number
from verifiers.core.status import FAILURES, Status
from verifiers.core.table import figure, percent


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_a_fraction_is_exact(numerator: int, denominator: int) -> None:
    assert parse_number(f"{numerator}/{denominator}") == Fraction(numerator, denominator)
    assert float(parse_number(f" {numerator} / {denominator} ")) == numerator / denominator


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300, max_value=1e300))
def test_a_float_comes_back_as_it_was(number: float) -> None:
    assert float(parse_number(number)) == number
    assert Epsilon.parse(number).value == number


#: The last is written with other digits than ours.
WRONG = ["", "x", "0x10", "1/2/3", "nan", "inf", True, None, [1], "1e999999999", "1e-401", "\u0661/\u0662"]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_number_is_refused_and_repeated(wrong: object) -> None:
    with pytest.raises(InputError, match="is not a number; write it like 8/255") as caught:
        parse_number(wrong, name="sigma")
    assert str(caught.value).startswith(f"sigma: {wrong!r} ")


def test_a_radius_keeps_its_text() -> None:
    eps = Epsilon.parse(" 2 / 255")
    assert (eps.text, eps.value, str(eps)) == ("2/255", 2 / 255, "2/255")
    assert Epsilon.parse(eps) is eps
    assert Epsilon.parse("1e300").value == 1e300


@pytest.mark.parametrize("wrong", ["0", "-1/255", "1e399", 0.0])
def test_a_radius_is_positive_and_finite(wrong: str | float) -> None:
    with pytest.raises(InputError, match=r"eps must be positive and finite, got .*: write it like 8/255 or 0\.03"):
        Epsilon.parse(wrong)


def test_norms_by_name() -> None:
    assert [parse_norm(name) for name in ("linf", "l2", "l1")] == list(Norm)
    with pytest.raises(InputError, match=r"unknown norm 'l_inf'. Did you mean 'linf'\?"):
        parse_norm("l_inf")


def test_which_noise_certifies_which_norm() -> None:
    assert {(noise, norm) for noise in Noise for norm in Norm if noise.certifies(norm)} == {
        *((Noise.GAUSSIAN, norm) for norm in Norm),
        (Noise.UNIFORM, Norm.L1),
    }


@pytest.mark.parametrize(("dtype", "fill"), [("float64", math.nan), ("float32", math.nan), ("int64", -1), ("uint8", 0)])
def test_a_row_that_is_not_computed_holds_no_answer(dtype: str, fill: float) -> None:
    stored = np.full(2, Column("x", dtype, "", "").fill, dtype)
    assert np.array_equal(stored, np.full(2, fill, dtype), equal_nan=True)


def test_a_new_row_is_pending_and_certifies_nothing() -> None:
    fills = {column.name: column.fill for column in COMMON_COLUMNS}
    assert fills["status"] == Status.PENDING and fills["certified"] == 0 and not fills["radius"] >= 0


def test_statuses_are_stored_as_numbers_that_never_change() -> None:
    names = (
        "PENDING CERTIFIED NOT_CERTIFIED ABSTAINED MISCLASSIFIED FALSIFIED VACUOUS UNSUPPORTED OUT_OF_MEMORY TIMEOUT"
    )
    assert [status.name for status in sorted(Status)] == [*names.split(), "ERROR"]
    assert [status.value for status in sorted(Status)] == list(range(11))
    assert {Status.CERTIFIED, Status.NOT_CERTIFIED, Status.FALSIFIED, Status.VACUOUS}.isdisjoint(FAILURES)


def test_figures_of_tables() -> None:
    assert percent(0.1234) == "12.3%" and percent(1.0) == "100.0%" and percent(math.nan) == "-"
    assert figure(0.012345) == "0.0123" and figure(1234.5) == "1.23e+03" and figure(math.nan) == "-"
