"""Fronts of clean against certified accuracy: a method is judged by all of its settings, not by one."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One setting of a method: its accuracies, one for each seed, as shares.

    Attributes:
        method: name of the method.
        settings: what varies, for readers; "" where nothing does.
        clean: accuracies without a disturbance.
        certified: shares correct and certified at eps.
    """

    method: str
    settings: str
    clean: tuple[float, ...]
    certified: tuple[float, ...]

    @property
    def mean(self) -> tuple[float, float]:
        """Mean clean and certified accuracy over the seeds."""
        return statistics.fmean(self.clean), statistics.fmean(self.certified)

    @property
    def deviation(self) -> tuple[float, float]:
        """Standard deviation of both over the seeds; 0 for a single one."""
        several = len(self.clean) > 1
        return (statistics.stdev(self.clean), statistics.stdev(self.certified)) if several else (0.0, 0.0)


def by_method(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points of each method, in their order."""
    methods = dict.fromkeys(point.method for point in points)
    return {method: [point for point in points if point.method == method] for method in methods}


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one equals or exceeds in both means, by falling clean accuracy.

    Of points with the same means, the first one stays.
    """
    found: list[Point] = []
    best = float("-inf")
    for point in sorted(points, key=lambda point: (-point.mean[0], -point.mean[1])):
        if point.mean[1] > best:
            found.append(point)
            best = point.mean[1]
    return found


def area(points: Sequence[Point]) -> float:
    """Compute the share of the unit square that a front dominates: the mean, over clean accuracies c uniform in [0, 1],
    of the highest certified accuracy at a clean accuracy of at least c.
    """
    total, before = 0.0, 0.0
    for point in front(points):
        clean, certified = point.mean
        total += clean * (certified - before)
        before = certified
    return total
