"""The rule of the release gate: errors by exact enumeration and by simulation, power, and a table of verdicts."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from certkd.comparison.gate import Counts, Rule, Verdict, decide, judge, stake
from verifiers.core.errors import InputError

ALPHA = 0.05

PARSED = [
    ("certified>=0.95*shipped", ("certified", 0.95, 0.0)),
    (" certified >= 19/20 * shipped ", ("certified", 0.95, 0.0)),
    ("clean>=shipped-0.02", ("clean", 1.0, -0.02)),
    ("clean>=shipped", ("clean", 1.0, 0.0)),
    ("pgd>=0.9*shipped - 1/100", ("pgd", 0.9, -0.01)),
    ("certified>=0.9*shipped+0.05", ("certified", 0.9, 0.05)),
    ("certified>=0.5", ("certified", 0.0, 0.5)),
    ("retention>=0.9", ("retention", 0.0, 0.9)),
    ("same-class>=99/100", ("same-class", 0.0, 0.99)),
    ("certified>=5e-1", ("certified", 0.0, 0.5)),
]


@pytest.mark.parametrize(("text", "parts"), PARSED, ids=[text for text, _ in PARSED])
def test_a_requirement_is_a_metric_and_a_limit(text: str, parts: tuple[str, float, float]) -> None:
    rule = Rule.parse(text)
    assert (rule.metric, rule.factor, rule.plus) == parts and rule.text == text.strip()


REFUSED = [
    ("certified", "must look like certified>=0.95*shipped"),
    ("certified<=0.5", "must look like"),
    ("certified>0.5", "must look like"),
    ("certified>=", "must look like"),
    ("certified>=0.5*0.5", "must look like"),
    ("certified>=0.5-0.1", "'0.5-0.1' is not a number"),
    ("certified>=0.5*teacher", "must look like"),
    ("certifed>=0.5", "unknown metric 'certifed'. Did you mean 'certified'?"),
    ("certified>=1.1*shipped", "asks for more than every sample"),
    ("certified>=shipped+0.1", "asks for more than every sample"),
    ("certified>=1.5", "asks for more than every sample"),
    ("certified>=1/0", "divides by zero"),
    ("certified>=1..2", "'1..2' is not a number"),
    ("retention>=0.9*shipped", "retention is about both networks already"),
    ("same-class>=shipped", "same-class is about both networks already"),
    ("x" * 500 + ">=1", "unknown metric"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[text[:30] for text, _ in REFUSED])
def test_what_is_no_requirement_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        Rule.parse(text)
    assert message in str(caught.value)


#: Verdicts at alpha 0.05: the requirement, both, gained, lost, neither. Each was checked by hand for its direction.
VERDICTS = [
    ("certified>=0.95*shipped", (144, 0, 0, 216), Verdict.MET),
    ("certified>=0.95*shipped", (140, 0, 4, 216), Verdict.UNDECIDED),
    ("certified>=0.95*shipped", (130, 0, 14, 216), Verdict.UNDECIDED),
    ("certified>=0.95*shipped", (120, 0, 24, 216), Verdict.FAILED),
    ("certified>=0.95*shipped", (120, 24, 24, 192), Verdict.UNDECIDED),
    ("certified>=0.95*shipped", (144, 20, 0, 196), Verdict.MET),
    ("certified>=0.95*shipped", (8, 0, 0, 12), Verdict.UNDECIDED),
    ("certified>=0.95*shipped", (0, 0, 8, 12), Verdict.FAILED),
    ("certified>=0.95*shipped", (0, 0, 0, 20), Verdict.UNDECIDED),
    ("clean>=shipped-0.02", (350, 0, 0, 10), Verdict.MET),
    ("clean>=shipped-0.02", (330, 0, 20, 10), Verdict.FAILED),
    ("clean>=shipped-0.02", (343, 0, 7, 10), Verdict.UNDECIDED),
    ("clean>=shipped", (340, 10, 0, 10), Verdict.MET),
    ("clean>=shipped", (340, 0, 10, 10), Verdict.FAILED),
    ("clean>=shipped", (350, 0, 0, 10), Verdict.UNDECIDED),
    ("certified>=0.5", (220, 0, 0, 140), Verdict.MET),
    ("certified>=0.5", (100, 120, 0, 140), Verdict.MET),
    ("certified>=0.5", (190, 0, 0, 170), Verdict.UNDECIDED),
    ("certified>=0.5", (140, 0, 0, 220), Verdict.FAILED),
    ("certified>=0", (0, 0, 5, 5), Verdict.MET),
    ("certified>=1", (10, 0, 0, 0), Verdict.UNDECIDED),
    ("certified>=1", (10**6, 0, 0, 0), Verdict.UNDECIDED),
    ("certified>=1", (10**6, 0, 1, 0), Verdict.FAILED),
    ("retention>=0.9", (100, 0, 0, 200), Verdict.MET),
    ("retention>=0.9", (100, 150, 0, 50), Verdict.MET),
    ("retention>=0.9", (92, 0, 8, 200), Verdict.UNDECIDED),
    ("retention>=0.9", (70, 200, 30, 0), Verdict.FAILED),
    ("same-class>=0.9", (340, 0, 0, 20), Verdict.MET),
    ("same-class>=0.9", (324, 0, 0, 36), Verdict.UNDECIDED),
    ("same-class>=0.9", (300, 0, 0, 60), Verdict.FAILED),
]


@pytest.mark.parametrize(("text", "counts", "verdict"), VERDICTS, ids=lambda value: str(value))
def test_a_table_of_verdicts(text: str, counts: tuple[int, int, int, int], verdict: Verdict) -> None:
    assert judge(Rule.parse(text), Counts(*counts), ALPHA, ALPHA) is verdict


def exact_stake(values: list[Fraction], rates: list[Fraction], numbers: tuple[int, ...]) -> Fraction:
    """The average over the rates of the product of 1 + rate * value, in exact arithmetic."""
    total = Fraction(0)
    for rate in rates:
        product = Fraction(1)
        for value, number in zip(values, numbers, strict=True):
            product *= (1 + rate * value) ** number
        total += product
    return total / len(rates)


def test_a_stake_is_the_average_of_products() -> None:
    values = [Fraction(1, 20), Fraction(1), Fraction(-19, 20), Fraction(0)]
    rates = [Fraction(2 * i + 1, 400) / Fraction(19, 20) for i in range(200)]
    for numbers in ((3, 0, 0, 2), (5, 1, 2, 4), (0, 0, 3, 0)):
        exact = exact_stake(values, rates, numbers)
        found = stake(np.array([float(value) for value in values]), np.array(numbers))
        assert found == pytest.approx(float(exact), rel=1e-9), numbers


def multinomials(count: int) -> list[tuple[int, int, int, int]]:
    return [
        (a, b, c, count - a - b - c) for a, b, c in itertools.product(range(count + 1), repeat=3) if a + b + c <= count
    ]


def chance(counts: tuple[int, ...], shares: tuple[float, ...]) -> float:
    ways = math.factorial(sum(counts)) // math.prod(map(math.factorial, counts))
    return ways * math.prod(share**number for share, number in zip(shares, counts, strict=True))


#: Truths on the edge of a requirement: the shares of both, gained, lost, neither, where d has mean 0 exactly.
EDGES = [
    ("certified>=0.95*shipped", (0.95, 0.0, 0.05, 0.0)),
    ("certified>=0.95*shipped", (0.475, 0.0, 0.025, 0.5)),
    ("certified>=0.5*shipped", (0.3, 0.1, 0.5, 0.1)),
    ("certified>=shipped", (0.2, 0.3, 0.3, 0.2)),
    ("certified>=shipped", (0.0, 0.5, 0.5, 0.0)),
    ("certified>=0.5", (0.25, 0.25, 0.25, 0.25)),
    ("clean>=shipped-0.2", (0.5, 0.1, 0.3, 0.1)),
    ("retention>=0.8", (0.8, 0.0, 0.2, 0.0)),
    ("same-class>=0.9", (0.9, 0.0, 0.0, 0.1)),
]


@pytest.mark.parametrize(("text", "shares"), EDGES, ids=lambda value: str(value))
def test_wrong_answers_on_the_edge_are_rarer_than_alpha(text: str, shares: tuple[float, ...]) -> None:
    """All outcomes of nine samples with their probabilities; with a large alpha, so that there are answers."""
    rule = Rule.parse(text)
    for alpha in (0.2, 0.4):
        wrong = {Verdict.MET: 0.0, Verdict.FAILED: 0.0, Verdict.UNDECIDED: 0.0}
        for counts in multinomials(9):
            wrong[judge(rule, Counts(*counts), alpha, alpha)] += chance(counts, shares)
        assert sum(wrong.values()) == pytest.approx(1)
        for verdict in (Verdict.MET, Verdict.FAILED):
            assert wrong[verdict] <= alpha, f"{verdict} has probability {wrong[verdict]:.3f} at alpha {alpha}"


@given(
    st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(any),
    st.sampled_from([text for text, _ in EDGES]),
)
@settings(max_examples=12, deadline=None)
def test_more_gains_never_fail_and_more_losses_never_meet(numbers: list[int], text: str) -> None:
    rule, order = Rule.parse(text), [Verdict.FAILED, Verdict.UNDECIDED, Verdict.MET]
    both, gained, lost, neither = numbers
    base = order.index(judge(rule, Counts(both, gained, lost, neither), ALPHA, ALPHA))
    if lost and rule.metric != "same-class":
        better = judge(rule, Counts(both + 1, gained, lost - 1, neither), ALPHA, ALPHA)
        assert order.index(better) >= base, "a sample that is kept instead of lost is worse"
    if neither and rule.metric not in ("retention", "same-class"):
        better = judge(rule, Counts(both, gained + 1, lost, neither - 1), ALPHA, ALPHA)
        assert order.index(better) >= base, "a sample that is gained is worse"


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4).filter(any), st.sampled_from([text for text, _ in EDGES]))
@settings(max_examples=12, deadline=None)
def test_an_answer_agrees_with_the_shares_of_the_samples(numbers: list[int], text: str) -> None:
    rule, counts = Rule.parse(text), Counts(*numbers)
    ours, theirs = counts.both + counts.gained, counts.both + counts.lost
    excess = ours - rule.factor * theirs - rule.plus * counts.samples
    if rule.metric == "retention":
        excess = counts.both - rule.plus * theirs
    verdict = judge(rule, counts, ALPHA, ALPHA)
    assert not (verdict is Verdict.MET and excess < 0), f"met although the samples are {excess} below"
    assert not (verdict is Verdict.FAILED and excess > 0), f"failed although the samples are {excess} above"


def verdicts(text: str, shares: tuple[float, ...], samples: int, runs: int) -> dict[Verdict, float]:
    """The share of each verdict over simulated sets of samples."""
    random, rule = np.random.default_rng(1), Rule.parse(text)
    drawn = random.multinomial(samples, shares, runs)
    found = [judge(rule, Counts(*map(int, one)), ALPHA, ALPHA) for one in drawn]
    return {verdict: found.count(verdict) / runs for verdict in Verdict}


#: Truths with the power that the gate had when it was written, on 360 samples of which 60 % are certified.
POWER = [
    ((0.60, 0.00, 0.00, 0.40), Verdict.MET, 1.0),
    ((0.59, 0.04, 0.01, 0.36), Verdict.MET, 0.95),
    ((0.54, 0.00, 0.06, 0.40), Verdict.FAILED, 0.3),
    ((0.50, 0.00, 0.10, 0.40), Verdict.FAILED, 0.95),
    ((0.40, 0.02, 0.20, 0.38), Verdict.FAILED, 0.99),
]


@pytest.mark.parametrize(("shares", "verdict", "power"), POWER, ids=lambda value: str(value))
def test_clear_cases_are_decided_with_360_samples(shares: tuple[float, ...], verdict: Verdict, power: float) -> None:
    found = verdicts("certified>=0.95*shipped", shares, 360, 100)
    other = Verdict.MET if verdict is Verdict.FAILED else Verdict.FAILED
    assert found[verdict] >= power and found[other] <= ALPHA, found


@pytest.mark.slow
def test_looking_again_and_again_does_not_raise_the_error() -> None:
    """A gate that certifies twenty more samples until it decides is wrong on the edge with probability alpha."""
    random, rule, wrong, runs = np.random.default_rng(2), Rule.parse("certified>=0.8*shipped"), 0, 150
    for _ in range(runs):
        counts = np.zeros(4, int)
        for _ in range(20):
            counts += random.multinomial(20, (0.48, 0.0, 0.12, 0.4))
            if judge(rule, Counts(*map(int, counts)), 1e-9, ALPHA) is Verdict.FAILED:
                wrong += 1
                break
    assert wrong / runs <= ALPHA, f"{wrong} of {runs} false alarms"


def answers(new: str, shipped: str) -> tuple[np.ndarray, np.ndarray]:
    """Answers written as digits."""
    return tuple(np.array([one == "1" for one in text]) for text in (new, shipped))  # type: ignore[return-value]


def test_decisions_count_and_name_what_they_saw() -> None:
    pair = answers("1101" * 25, "1110" * 25)
    rules = [Rule.parse(text) for text in ("certified>=0.2*shipped", "retention>=0.3", "certified>=0.99")]
    met, kept, failed = decide(rules, {"certified": pair, "retention": pair}, ALPHA)
    assert met.counts == Counts(50, 25, 25, 0) and (met.new, met.shipped) == (0.75, 0.75)
    assert [one.verdict for one in (met, kept, failed)] == [Verdict.MET, Verdict.MET, Verdict.FAILED]
    assert kept.new == pytest.approx(2 / 3) and kept.needed == 0
    assert met.sentence == ("met: certified>=0.2*shipped (certified 75.0%, shipped 75.0%, 25 gained, 25 lost, n = 100)")
    assert failed.to_dict() == {
        "requirement": "certified>=0.99",
        "verdict": "failed",
        "new": 0.75,
        "shipped": 0.75,
        "needed": 0,
        "both": 50,
        "gained": 25,
        "lost": 25,
        "neither": 0,
    }


def test_an_open_question_says_how_many_samples_it_needs() -> None:
    pair = answers("1" * 20, "1" * 20)
    (open_,) = decide([Rule.parse("certified>=0.9*shipped")], {"certified": pair}, ALPHA)
    assert open_.verdict is Verdict.UNDECIDED and "that many cannot decide, about" in open_.sentence
    enough = Counts(open_.needed, 0, 0, 0)
    assert judge(open_.rule, enough, ALPHA, ALPHA) is Verdict.MET
    few = Counts(int(open_.needed / 1.2), 0, 0, 0)
    assert judge(open_.rule, few, ALPHA, ALPHA) is Verdict.UNDECIDED


def test_no_number_of_samples_decides_what_is_on_the_limit() -> None:
    pair = answers("1" * 10 + "0" * 10, "1" * 20)
    (open_,) = decide([Rule.parse("certified>=0.5")], {"certified": pair}, ALPHA)
    assert open_.needed == -1 and "nor could a million like these" in open_.sentence


def test_many_requirements_share_the_chance_of_a_false_alarm() -> None:
    rule = Rule.parse("certified>=0.95*shipped")
    counts = next(
        Counts(140 - lost, 0, lost, 60)
        for lost in range(100)
        if judge(rule, Counts(140 - lost, 0, lost, 60), ALPHA, ALPHA) is Verdict.FAILED
    )
    pair = answers("1" * counts.both + "0" * (counts.lost + 60), "1" * 140 + "0" * 60)
    assert decide([rule], {"certified": pair}, ALPHA)[0].verdict is Verdict.FAILED
    assert decide([rule] * 20, {"certified": pair}, ALPHA)[0].verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, math.nan])
def test_alpha_is_a_probability(alpha: float) -> None:
    with pytest.raises(InputError, match="alpha must be between 0 and 1"):
        decide([Rule.parse("certified>=0.5")], {"certified": answers("1", "1")}, alpha)
