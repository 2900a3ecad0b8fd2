"""Intervals and tests without scipy: against scipy, exact enumeration and literal values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from certkd.comparison.intervals import Estimate, holm, over_samples, over_seeds, t_cdf, t_quantile
from verifiers.core.statistics import mcnemar

FREEDOM = (1, 2, 3, 4, 5, 8, 29, 30)


@pytest.mark.parametrize("freedom", FREEDOM)
def test_the_t_distribution_is_scipys(freedom: int) -> None:
    for t in (-40.0, -2.5, -0.3, 0.0, 0.7, 1.96, 12.7, 300.0):
        assert t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12), f"t {t}"
    for share in (0.5, 0.6, 0.975, 0.9995):
        assert t_quantile(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), abs=1e-9), f"share {share}"


def test_the_t_quantiles_of_textbooks() -> None:
    found = [round(t_quantile(0.975, freedom), 3) for freedom in (1, 2, 4, 9)]
    assert found == [12.706, 4.303, 2.776, 2.262]


@given(st.lists(st.floats(-1, 1).map(lambda value: round(value, 4)), min_size=2, max_size=8))
@settings(max_examples=25, deadline=None)
def test_seeds_are_students_test_and_interval(values: list[float]) -> None:
    found = over_seeds(values)
    assert found.mean == pytest.approx(np.mean(values))
    if np.std(values) < 1e-9:
        return
    scipys = stats.ttest_1samp(values, 0.0)
    low, high = scipys.confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high, found.p], [low, high, scipys.pvalue], rtol=1e-6, atol=1e-9)


def test_seeds_that_agree_have_no_interval() -> None:
    assert over_seeds([0.25, 0.25, 0.25]) == Estimate(0.25, 0.25, 0.25, 0.0)
    assert over_seeds([0.0, 0.0]) == Estimate(0.0, 0.0, 0.0, 1.0)


def exact_quantile(gains: int, losses: int, samples: int, share: float) -> float:
    """The quantile of the bootstrap's distribution itself: all resamples of so few pairs, with their probabilities."""
    chance: dict[float, float] = {}
    shares = gains / samples, losses / samples, (samples - gains - losses) / samples
    for more, less in itertools.product(range(samples + 1), repeat=2):
        if more + less <= samples:
            counts = [more, less, samples - more - less]
            p = float(stats.multinomial.pmf(counts, samples, shares))
            chance[more - less] = chance.get(more - less, 0.0) + p
    total = 0.0
    for difference in sorted(chance):
        total += chance[difference]
        if total >= share:
            return difference / samples
    raise AssertionError("no quantile")


@pytest.mark.parametrize(("gains", "losses", "samples"), [(3, 1, 12), (0, 4, 10), (7, 7, 20)])
def test_the_bootstrap_is_the_one_of_all_resamples(gains: int, losses: int, samples: int) -> None:
    found = over_samples(gains, losses, samples, mcnemar(gains, losses))
    assert found.mean == (gains - losses) / samples and found.p == mcnemar(gains, losses)
    for got, share in ((found.low, 0.025), (found.high, 0.975)):
        near = exact_quantile(gains, losses, samples, share)
        assert abs(got - near) <= 1 / samples + 1e-12, f"{got} is more than one sample from {near}"
    assert over_samples(gains, losses, samples, 1.0) == Estimate(found.mean, found.low, found.high, 1.0), "it varies"


def test_pairs_that_do_not_differ_still_have_an_interval() -> None:
    found = over_samples(0, 0, 100, 1.0)
    assert found.mean == 0 and found.low == -found.high
    assert found.high == pytest.approx(stats.binomtest(0, 100).proportion_ci(0.95, "exact").high)


def test_pairs_that_all_differ_still_have_an_interval() -> None:
    low = 2 * stats.binomtest(50, 50).proportion_ci(0.95, "exact").low - 1
    more, less = over_samples(50, 0, 50, 0.0), over_samples(0, 50, 50, 0.0)
    assert (more.mean, more.low, more.high) == pytest.approx((1.0, low, 1.0))
    assert (less.mean, less.low, less.high) == pytest.approx((-1.0, -1.0, -low))


def test_holm_adjusts_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert holm([]) == () and holm([0.2]) == (0.2,) and holm([0.9, 0.8]) == (1.0, 1.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@settings(max_examples=12, deadline=None)
def test_holm_rejects_what_its_definition_rejects(values: list[float]) -> None:
    adjusted = holm(values)
    order = sorted(range(len(values)), key=values.__getitem__)
    for alpha in (0.01, 0.05, 0.2):
        rejected = set()
        for place, i in enumerate(order):  # the definition: stop at the first that is too large
            if values[i] * (len(values) - place) > alpha:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p >= raw and not math.isnan(p) for p, raw in zip(adjusted, values, strict=True))
