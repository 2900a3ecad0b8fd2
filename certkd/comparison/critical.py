"""Bounds of each sample's critical eps, the largest radius at which it is robust, and the stages that decided it."""

import math

import numpy as np

from certkd.comparison.compare import radii
from certkd.comparison.methods import falsifying
from verifiers.core.status import Status
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.complete import Stage


def critical(certificates: Certificates) -> tuple[np.ndarray, np.ndarray]:
    """Bound each sample's critical eps from below by proof and from above by the nearest counterexample.

    Misclassified samples have 0 for both; where no attack succeeded the upper bound is inf.
    """
    low = radii(certificates)
    high = np.full(len(low), math.inf)
    for rows in falsifying(certificates):
        found = (rows["status"] == Status.FALSIFIED) & np.isfinite(rows["distance"])
        high = np.minimum(high, np.where(found, rows["distance"], math.inf))
    correct = next(iter(certificates))["correct"] == 1
    return low, np.where(correct, np.maximum(low, high), 0.0)


def decided(certificates: Certificates) -> tuple[dict[str, tuple[int, int]], int] | None:
    """Count the samples that each stage of ``complete`` certified and falsified, and the open ones; None without it."""
    staged = _staged(certificates)
    if not staged:
        return None
    rows = staged[0]
    status, counts = rows["status"], {}
    for stage in Stage:
        here = rows["stage"] == stage
        pair = tuple(int((here & (status == one)).sum()) for one in (Status.CERTIFIED, Status.FALSIFIED))
        counts[stage.title] = (pair[0], pair[1])
    ended = np.isin(status, [Status.CERTIFIED, Status.FALSIFIED, Status.MISCLASSIFIED])
    return counts, int((~ended).sum())


def _staged(certificates: Certificates) -> list[MethodRows]:
    return [rows for rows in certificates if Stage.BRANCH_AND_BOUND.column in rows.columns]
