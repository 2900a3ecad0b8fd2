"""Confidence bounds and radii of smoothing, against exact tails, closed forms and simulation."""

import math

import mpmath
import numpy as np
import pytest
from scipy.stats import binom, binomtest

from verifiers.core.noise import LOOKS
from verifiers.core.quantities import Norm
from verifiers.smoothing.statistics import Law, Noise, Schedule, attainable, leading, lower, smallest, upper

L2 = Law(Noise.GAUSSIAN, 1.0, Norm.L2, 12)


def by_bisection(k: int, n: int, level: float) -> float:
    """The p at which k or more successes have probability ``level``."""
    if k == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if binom.sf(k - 1, n, middle) < level else (low, middle)
    return low


@pytest.mark.parametrize("level", [0.05, 0.001, 0.0000005])
@pytest.mark.parametrize("n", [1, 2, 5, 17, 40])
@pytest.mark.thin(2)
def test_lower_bounds_of_small_votes_are_where_the_binomial_tail_is_the_level(n: int, level: float) -> None:
    found = lower(np.arange(n + 1), n, level)
    for k in range(n + 1):
        assert found[k] == pytest.approx(by_bisection(k, n, level), abs=1e-12), f"k={k} of n={n}"


def test_lower_bounds_of_large_votes_are_where_the_binomial_tail_is_the_level() -> None:
    generator = np.random.default_rng(0)
    for n in (1000, 99_999, 1_000_000):
        for k in [0, 1, n - 1, n, *generator.integers(0, n, 20).tolist()]:
            assert lower(np.array(k), n, 0.001) == pytest.approx(by_bisection(k, n, 0.001), abs=1e-12), f"{k} of {n}"


def test_known_bounds() -> None:
    known = {(99, 100): 0.9113731111, (99_000, 100_000): 0.98898934038, (75_000, 100_000): 0.74574684214}
    for (k, n), bound in known.items():
        assert lower(np.array(k), n, 0.001) == pytest.approx(bound, abs=1e-9)
    assert lower(np.array(1000), 1000, 0.001) == 0.001 ** (1 / 1000) and lower(np.array(0), 1000, 0.001) == 0
    assert upper(np.array(75_000), 100_000, 0.001) == pytest.approx(0.75421960418, abs=1e-10)
    assert upper(np.array(0), 100, 0.001) == pytest.approx(0.066745699203, abs=1e-10)
    assert upper(np.array(100), 100, 0.001) == 1


@pytest.mark.parametrize(("n", "cap"), [(100, 1.5005), (1000, 2.4633), (10_000, 3.1986), (100_000, 3.8115)])
def test_the_attainable_radius(n: int, cap: float) -> None:
    assert attainable(L2, Schedule.single(n, 0.001)) == pytest.approx(cap, abs=5e-5)
    assert attainable(L2, Schedule.staged(n, 0.001)) < cap


@pytest.mark.slow
def test_radii_are_rounded_down() -> None:
    mpmath.mp.dps = 40
    generator = np.random.default_rng(1)
    p = np.concatenate([generator.uniform(0.5, 1, 300), 1 - 10 ** generator.uniform(-6, -1, 300)])
    q = (1 - p) * generator.uniform(0, 1, len(p))
    for sigma in (0.12, 0.25, 1.0):
        one, two = (Law(Noise.GAUSSIAN, sigma, Norm.L2, 4).radius(p, other) for other in (1 - p, q))
        uniform = Law(Noise.UNIFORM, sigma, Norm.L1, 4).one_class(p)
        for i in range(len(p)):
            a, b = (mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(float(v)) - 1) for v in (p[i], q[i]))
            assert 0 <= float(sigma * a - mpmath.mpf(one[i])) < 1e-6, f"p={p[i]!r}"
            assert 0 <= float(sigma * (a - b) / 2 - mpmath.mpf(two[i])) < 1e-4, f"p={p[i]!r}, q={q[i]!r}"
            exact = mpmath.sqrt(3) * mpmath.mpf(sigma) * (2 * mpmath.mpf(float(p[i])) - 1)
            assert 0 <= float(exact - mpmath.mpf(uniform[i])) < 1e-9


def test_radii_by_norm() -> None:
    p = np.array([0.98899])
    l2 = Law(Noise.GAUSSIAN, 0.5, Norm.L2, 16).one_class(p)
    assert Law(Noise.GAUSSIAN, 0.5, Norm.L1, 16).one_class(p) == l2
    assert Law(Noise.GAUSSIAN, 0.5, Norm.LINF, 16).one_class(p) == pytest.approx(l2 / 4, rel=1e-12)
    assert Law(Noise.UNIFORM, 0.5, Norm.L1, 16).one_class(p) == pytest.approx(0.84696, abs=1e-5)
    assert not Noise.UNIFORM.certifies(Norm.L2) and not Noise.UNIFORM.certifies(Norm.LINF)


def test_radii_rise_with_votes_and_are_zero_without_a_majority() -> None:
    bounds = lower(np.arange(1001), 1000, 0.001)
    radii = L2.one_class(bounds)
    assert (np.diff(radii) >= 0).all() and (radii[bounds <= 0.5] == 0).all() and (radii[bounds > 0.5001] > 0).all()
    doubled = Law(Noise.GAUSSIAN, 2.0, Norm.L2, 12).one_class(bounds)
    assert doubled == pytest.approx(2 * radii, rel=1e-12)
    assert L2.radius(np.array([0.4, 0.4]), np.array([0.4, 0.3])).tolist()[0] == 0
    assert L2.radius(np.array([0.4]), np.array([0.3]))[0] > 0, "the two-class radius needs no majority"


@pytest.mark.parametrize("n", [1, 50, 99, 100, 1000, 12_345, 100_000])
def test_a_schedule_spends_alpha_and_ends_at_n(n: int) -> None:
    schedule = Schedule.staged(n, 0.001)
    assert schedule.counts[-1] == n and math.isclose(sum(schedule.levels), 0.001)
    assert list(schedule.counts) == sorted(set(schedule.counts))


def test_only_the_question_about_all_copies_has_one_look() -> None:
    assert Schedule.of("full", 1000, 0.001) == Schedule((1000,), (0.001,))
    for question in ("eps", "grid"):
        assert Schedule.of(question, 1000, 0.001).counts == (60, 120, 240, 480, 1000)
        assert Schedule.of(question, 100_000, 0.001).counts == (*(60 * 2**k for k in range(11)), 100_000)
        assert Schedule.of(question, 60, 0.001) == Schedule((60,), (0.001,))
    assert len(Schedule.staged(10**9, 0.001).counts) == LOOKS


@pytest.mark.parametrize(("n", "alpha"), [(150, 0.05), (300, 0.2)])
@pytest.mark.parametrize("p", [0.5, 0.55, 0.8, 0.97])
def test_the_chance_of_a_wrong_bound_at_any_look_is_exact(n: int, alpha: float, p: float) -> None:
    """The oracle sums the binomial law over all paths of votes: those with a bound above p at some look are wrong."""
    schedule = Schedule.staged(n, alpha)
    assert len(schedule.counts) >= 2
    right, before = {0: 1.0}, 0
    for count, level in zip(schedule.counts, schedule.levels, strict=True):
        drawn, after = count - before, dict[int, float]()
        law = [math.comb(drawn, k) * p**k * (1 - p) ** (drawn - k) for k in range(drawn + 1)]
        bounds = lower(np.arange(count + 1), count, level)
        for votes, chance in right.items():
            for k, share in enumerate(law):
                if bounds[votes + k] <= p:
                    after[votes + k] = after.get(votes + k, 0.0) + chance * share
        right, before = after, count
    wrong = 1 - sum(right.values())
    assert -1e-9 <= wrong <= alpha, f"wrong with probability {wrong} at alpha {alpha}"
    assert wrong > alpha / 20, "the looks spend far less than alpha"


def test_a_clear_vote_needs_the_first_look_alone() -> None:
    """One of 60 unanimous copies certifies what 1,000 did; at the end little of the radius is lost."""
    schedule = Schedule.staged(100_000, 0.001)
    first = L2.one_class(schedule.bounds(np.array([[60]]), np.array([[0]]))[0])[0]
    assert 0 < first < attainable(L2, schedule)
    assert attainable(L2, schedule) > 0.99 * attainable(L2, Schedule.single(100_000, 0.001))


@pytest.mark.parametrize("most", [1, 2, 3, 4, 7, 8, 100])
def test_bisection_finds_the_first_count_that_is_enough(most: int) -> None:
    wanted = np.arange(most + 3)
    assert smallest(lambda k: k >= wanted, most, len(wanted)).tolist() == np.minimum(wanted, most).tolist()


def test_votes_of_the_selected_class_and_of_the_strongest_other() -> None:
    votes = np.array([[[5, 3, 2], [1, 1, 8]], [[9, 7, 4], [2, 6, 12]]])
    own, second = leading(votes, np.array([1, 2]))
    assert own.tolist() == [[3, 8], [7, 12]] and second.tolist() == [[5, 1], [9, 6]]


def _simulated(p: list[float], schedule: Schedule, images: int) -> np.ndarray:
    """Cumulative votes ``(stages, images, classes)``."""
    generator, steps = np.random.default_rng(7), np.diff([0, *schedule.counts])
    return np.cumsum([generator.multinomial(step, p, images) for step in steps], 0)


def _failures(p: list[float], schedule: Schedule, images: int) -> tuple[int, int]:
    """How often a bound at any look is wrong: of class 0 alone, and of the two classes."""
    votes = _simulated(p, schedule, images)
    wrong_one, wrong_two = np.zeros(images, bool), np.zeros(images, bool)
    for stages in range(1, len(schedule.counts) + 1):
        seen = votes[:stages]
        one, a, b = schedule.bounds(seen[..., 0], seen[..., 1:].max(2))
        wrong_one |= one > p[0]
        wrong_two |= (a > p[0]) | (b < max(p[1:]))
    return int(wrong_one.sum()), int(wrong_two.sum())


@pytest.mark.parametrize("schedule", [Schedule.single(400, 0.05), Schedule.staged(2000, 0.05)])
@pytest.mark.parametrize(
    "p", [[0.5, 0.5], [0.6, 0.25, 0.15], [0.99, 0.01], [0.28, *[0.08] * 9], [0.34, 0.33, 0.33]], ids=str
)
@pytest.mark.thin(2)
def test_bounds_fail_no_more_often_than_alpha(p: list[float], schedule: Schedule) -> None:
    for failures in _failures(p, schedule, 10_000):
        assert binomtest(failures, 10_000, 0.05, "greater").pvalue > 1e-4, f"{failures} of 10,000 at alpha 0.05"


def test_looking_again_at_full_alpha_is_caught() -> None:
    counts = Schedule.staged(2000, 0.05).counts
    peeking, _ = _failures([0.6, 0.25, 0.15], Schedule(counts, (0.05,) * len(counts)), 10_000)
    assert binomtest(peeking, 10_000, 0.05, "greater").pvalue < 1e-6, f"only {peeking} of 10,000"
