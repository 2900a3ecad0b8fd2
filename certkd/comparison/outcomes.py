"""Settle each sample of one or several files: certified, falsified, misclassified, undecided or failed."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from certkd.comparison.methods import check_known
from verifiers.core.status import FAILURES, About, Status
from verifiers.methods.registry import certifies, find, proves
from verifiers.results.rows import Certificates, MethodRows


@dataclass(frozen=True)
class AtEps:
    """One method's answer at eps.

    Attributes:
        samples: number certified; for an attack, number that is correct and survived it.
        share: their share of all samples.
        proved: whether the share is a lower limit (a certificate) or, for an attack, an upper one.
    """

    samples: int
    share: float
    proved: bool

    def __str__(self) -> str:
        return f"{'>=' if self.proved else '<='} {self.share:.1%}"


def at_eps(rows: MethodRows) -> AtEps | None:
    """Count a method's certificates at eps, or the samples that survived its attack; None until all rows are done.

    None too for rows that relate two networks: they say nothing about accuracy.
    """
    if not rows.answered or find(rows.name).relational:
        return None
    proved = certifies(rows.name)
    unbroken = (rows["status"] == Status.NOT_CERTIFIED) & (rows["margin"] >= 0)
    samples = rows.at_eps if proved else int(unbroken.sum())
    return AtEps(samples, samples / len(rows), proved)


def outcomes(files: Sequence[Certificates]) -> dict[str, int]:
    """Count the samples of all files by outcome; outcomes without samples are left out."""
    words = [word for certificates in files for word in _outcomes(certificates)]
    names = ("certified", "falsified", "misclassified", "undecided", "failed")
    return {name: words.count(name) for name in names if name in words}


def _outcomes(certificates: Certificates) -> list[str]:
    """Name each sample's outcome; certified by the best proof about this network, or by smoothing alone."""
    check_known(certificates)
    alone = [rows for rows in certificates if find(rows.name).about is not About.PAIR]
    certifying = [rows for rows in alone if certifies(rows.name)]
    proofs = [rows for rows in certifying if proves(rows.name)] or certifying[:1]
    status = np.stack([rows["status"] for rows in alone])
    certified = np.any([rows["certified"] == 1 for rows in proofs], axis=0) & np.ones(status.shape[1], bool)
    cases = {
        "certified": certified,
        "falsified": (status == Status.FALSIFIED).any(0),
        "misclassified": (status == Status.MISCLASSIFIED).any(0),
        "failed": np.isin(status, [one for one in FAILURES if one is not Status.TIMEOUT]).any(0),
    }
    return list(np.select(list(cases.values()), list(cases), "undecided").tolist())
