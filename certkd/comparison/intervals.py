"""Intervals and tests for differences that are paired by sample or by seed, without scipy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: The number of bootstrap resamples, and the seed that draws them.
RESAMPLES, SEED = 10_000, 0


@dataclass(frozen=True)
class Estimate:
    """A mean difference with its interval and the p-value of no difference; nan where they are undefined."""

    mean: float
    low: float
    high: float
    p: float


def over_samples(gains: int, losses: int, samples: int, p: float, confidence: float = 0.95) -> Estimate:
    """Estimate the mean of paired differences that are 1, 0 or -1, with a percentile bootstrap over the samples.

    Where no sample differs, or every one in the same direction, a bootstrap has no width; the interval is then the
    exact one of no event among them.

    Args:
        gains, losses: number of differences that are 1, and -1.
        samples: number of pairs.
        p: the p-value to report, of an exact test on gains and losses.
        confidence: of the interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    tail = (1 - confidence) / 2
    if gains == losses == 0:
        half = 1 - tail ** (1 / samples)
        return Estimate(0.0, -half, half, p)
    if samples in (gains, losses):
        least = 2 * tail ** (1 / samples) - 1
        return Estimate(1.0, least, 1.0, p) if gains else Estimate(-1.0, -1.0, -least, p)
    shares = np.array([gains, losses, samples - gains - losses]) / samples
    drawn = np.random.default_rng(SEED).multinomial(samples, shares, RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / samples, [tail, 1 - tail])
    return Estimate((gains - losses) / samples, float(low), float(high), p)


def over_seeds(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Estimate the mean of at least two values with Student's t interval and test; each value is one seed's."""
    count, mean = len(values), float(np.mean(values))
    error = float(np.std(values, ddof=1)) / math.sqrt(count)
    half = t_quantile(0.5 + confidence / 2, count - 1) * error
    if error == 0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    return Estimate(mean, mean - half, mean + half, 2 * (1 - t_cdf(abs(mean / error), count - 1)))


def t_cdf(t: float, freedom: int) -> float:
    """Give Student's t distribution for a whole number of degrees of freedom, as a finite sum.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for step in range(3 if odd else 2, freedom - 1, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + inside / 2


def t_quantile(share: float, freedom: int) -> float:
    """Invert ``t_cdf`` for a share of at least a half."""
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < share:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < share else (low, middle)
    return high


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values of several comparisons, so that one false positive among them has probability alpha at most.

    Source: Holm, Scand. J. Statist. 6, 1979.
    """
    adjusted, largest = [math.nan] * len(values), 0.0
    for place, i in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        largest = max(largest, min(1.0, values[i] * (len(values) - place)))
        adjusted[i] = largest
    return tuple(adjusted)
