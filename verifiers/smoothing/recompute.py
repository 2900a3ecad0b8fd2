"""Compute the columns of smoothing again from the stored votes."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from verifiers.core.status import Status
from verifiers.results.rows import MethodRows
from verifiers.smoothing.statistics import Law, Schedule, leading, lower, smallest

#: Largest relative difference of a radius when special functions of another library compute it.
ROUNDING = 1e-9
Marks = dict[str, Bool[np.ndarray, " rows"]]


@dataclass(frozen=True)
class Recomputed:
    """The settings that turn votes into radii.

    Attributes:
        law: noise and norm; of a log, whose images are unknown, with one pixel.
        schedule: the looks and their levels.
        most: the largest radius that a file holds: that of the image box, or eps.
    """

    law: Law
    schedule: Schedule
    most: float = math.inf

    def problems(self, rows: MethodRows, votes: Int[np.ndarray, "rows looks classes"] | None) -> Marks:
        """Mark finished rows that do not follow from their votes; without votes, from the stored bound of them."""
        found = self._by_bound(rows)
        return found if votes is None else {**found, **self._by_votes(rows, votes)}

    def _by_bound(self, rows: MethodRows) -> Marks:
        """Check radius, prediction and status against the stored bound of the probability."""
        status, one, selected = rows["status"], rows["radius_one_class"], rows["selected"]
        label, answered = rows["label"], one > 0
        bound = rows["p_lower"]
        expected = self.law.one_class(np.nan_to_num(bound))
        right = np.where(selected == label, Status.CERTIFIED, Status.MISCLASSIFIED)
        return {
            "its bound of the probability is outside [0, 1]": ~(np.isnan(bound) & ~answered)
            & ~((bound >= 0) & (bound <= 1)),
            "its radius does not follow from its bound of the probability": ~near(one, expected),
            "its radius is not that of its bound": (status == Status.CERTIFIED)
            & (rows["radius"] != np.minimum(one, self.most)),
            "its prediction is not what its vote says": rows["predicted"] != np.where(answered, selected, -1),
            "its status is not what its vote says": status != np.where(answered, right, Status.ABSTAINED),
        }

    def counted(self, rows: MethodRows) -> Marks:
        """Check the bound of a log's rows, whose votes are unknown: some count gives it, in one look."""
        n, level = self.schedule.counts[-1], self.schedule.levels[-1]
        voted = ~np.isnan(rows["p_lower"])
        bound = np.where(voted, rows["p_lower"], 0.5)
        count = smallest(lambda k: lower(k, n, level) >= bound * (1 - ROUNDING), n, len(bound))
        return {"no count of votes gives its bound of the probability": voted & ~near(bound, lower(count, n, level))}

    def _by_votes(self, rows: MethodRows, votes: Int[np.ndarray, "rows looks classes"]) -> Marks:
        """Check stages, counts and bounds against the votes of every look."""
        counts, stage, selected = np.array(self.schedule.counts), rows["stage"].astype(int), rows["selected"]
        seen, classes = votes[:, : len(counts)].astype(np.int64), votes.shape[2]
        looked = np.clip(stage, 1, len(counts))
        known = (stage >= 1) & (stage <= len(counts)) & (selected >= 0) & (selected < classes)
        own, second = leading(seen.swapaxes(0, 1), np.clip(selected, 0, classes - 1))
        bounds, two = np.zeros(len(stage)), np.zeros(len(stage))
        possible = (seen.sum(2) <= counts[np.minimum(np.arange(len(counts))[None], looked[:, None] - 1)]).all(1)
        for last in np.unique(looked):
            here = possible & (looked == last)
            one, p, q = self.schedule.bounds(own[:last, here], second[:last, here])
            bounds[here], two[here] = one, self.law.radius(p, q)
        return {
            "no such look or class": ~known,
            "it has other copies than its looks": rows["used"] != counts[looked - 1],
            "it has more votes than copies": ~possible,
            "its votes become fewer": (np.diff(votes.astype(np.int64), axis=1) < 0).any((1, 2)),
            "its bound of the probability does not follow from its votes": known
            & possible
            & ~near(rows["p_lower"], bounds),
            "its two-class radius does not follow from its votes": known
            & possible
            & ~near(rows["radius_two_class"], two),
        }


def shared_problems(
    votes: Int[np.ndarray, "rows classes"],
    teacher: Int[np.ndarray, "rows classes"],
    same: Int[np.ndarray, "rows classes"],
    used: Int[np.ndarray, " rows"],
) -> Marks:
    """Check the votes of both networks on the same copies."""
    least = np.minimum(votes, teacher)
    return {
        "the teacher has more votes than copies": teacher.sum(1) > used,
        "more copies got a class from both networks than from one of them": (same > least).any(1),
    }


def near(stored: np.ndarray, expected: np.ndarray) -> Bool[np.ndarray, " rows"]:
    """Compare up to rounding; nan stands for 0, the value of no vote."""
    return np.isclose(np.nan_to_num(stored), np.nan_to_num(expected), rtol=ROUNDING, atol=1e-12)
