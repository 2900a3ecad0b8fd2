"""Exact statistics of counts: against scipy and against literal sums of whole numbers."""

import math
from fractions import Fraction

import pytest
from scipy import special, stats

from verifiers.core.statistics import chance_limit, mcnemar, wilson


@pytest.mark.parametrize(("hits", "cases"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (1, 1000), (83, 263)])
def test_wilsons_interval_is_scipys(hits: int, cases: int) -> None:
    share = wilson(hits, cases)
    expected = stats.binomtest(hits, cases).proportion_ci(0.95, method="wilson")
    assert share.value == hits / cases
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), rel=1e-12, abs=1e-12)
    assert 0 <= share.low <= share.value <= share.high <= 1


def test_no_cases_are_not_a_number() -> None:
    share = wilson(0, 0)
    assert math.isnan(share.value) and math.isnan(share.low) and math.isnan(share.high)


COUNTS = [(0, 0), (0, 1), (3, 3), (4, 3), (2, 11), (0, 20), (338, 628), (900, 1), (0, 1500), (500, 520)]
MANY = pytest.param(5000, 5200, marks=pytest.mark.slow)


@pytest.mark.parametrize(("gains", "losses"), [*COUNTS, MANY])
def test_mcnemar_is_the_literal_binomial_sum(gains: int, losses: int) -> None:
    n = gains + losses
    tail = sum(math.comb(n, k) for k in range(min(gains, losses) + 1))
    assert mcnemar(gains, losses) == pytest.approx(float(min(1, Fraction(2 * tail, 2**n))), rel=1e-12)
    assert mcnemar(gains, losses) == mcnemar(losses, gains)


@pytest.mark.parametrize(("gains", "losses"), [*COUNTS, MANY])
def test_mcnemar_is_scipys(gains: int, losses: int) -> None:
    expected = min(1.0, 2 * float(special.bdtr(min(gains, losses), gains + losses, 0.5)))
    assert mcnemar(gains, losses) == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_guessing_hardly_ever_exceeds_the_limit_of_chance() -> None:
    assert chance_limit(10, 100) == pytest.approx(0.1 + 3 * 0.03)
    assert stats.binom.sf(100 * chance_limit(10, 100), 100, 0.1) < 0.01
