"""Statistics of counts, exact and without scipy."""

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True)
class Proportion:
    """A share of cases with its 95 % Wilson interval; nan when there are no cases."""

    hits: int
    cases: int
    value: float
    low: float
    high: float


def wilson(hits: int, cases: int, confidence: float = 0.95) -> Proportion:
    """Give a binomial share with Wilson's score interval.

    Source: Wilson, J. Am. Stat. Assoc. 22, 1927.
    """
    if cases == 0:
        return Proportion(0, 0, math.nan, math.nan, math.nan)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = hits / cases
    middle = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    half = z / (1 + z * z / cases) * math.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    return Proportion(hits, cases, share, max(0.0, middle - half), min(1.0, middle + half))


def mcnemar(gains: int, losses: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test: gains and losses, if both were equally likely.

    The lower tail of the binomial of gains + losses at 1/2, doubled; 1 without gains and losses.
    Source: McNemar, Psychometrika 12, 1947.
    """
    few, many = sorted((gains, losses))
    largest = math.comb(few + many, few) / 2 ** (few + many)  # of whole numbers of any size, rounded once
    tail = term = 1.0
    for step in range(few):
        term *= (few - step) / (many + 1 + step)
        tail += term
    return min(1.0, 2 * largest * tail)


def chance_limit(classes: int, samples: int) -> float:
    """Bound the accuracy of guessing: its mean plus three standard errors, hardly ever exceeded."""
    chance = 1 / classes
    return chance + 3 * math.sqrt(chance * (1 - chance) / samples)
