"""The results of an audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from verifiers.core.table import counted
from verifiers.results.rows import MethodRows


@dataclass
class Finding:
    """The result of one check of one method's claims.

    Attributes:
        method: the method's name.
        claims: number of claims of this kind in the file.
        asked: number of claims that were checked.
        again: number of claims that hold.
        contradictions: a line for each claim that does not hold.
        remark: the check and its means, or why claims were not checked.
    """

    method: str
    claims: int
    asked: int = 0
    again: int = 0
    contradictions: list[str] = field(default_factory=list)
    remark: str = ""

    @property
    def open(self) -> int:
        """The number of claims that were checked and neither hold nor are contradicted."""
        return self.asked - self.again - len(self.contradictions)


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    Attributes:
        findings: one per method and check.
        missing: claims that nothing looked at, a line each.
        limits: what was looked at in part, or is no claim about the network; a line each.
        seed: chose the rows and the fresh noise.
    """

    findings: Sequence[Finding]
    missing: Sequence[str]
    limits: Sequence[str]
    seed: int

    @property
    def contradictions(self) -> list[str]:
        """All contradictions, a line each."""
        return [line for finding in self.findings for line in finding.contradictions]

    @property
    def holds(self) -> bool:
        """True if every claim was looked at and none is contradicted."""
        return not self.contradictions and not self.missing


def marked(
    rows: MethodRows, asked: np.ndarray, problems: Mapping[str, np.ndarray], remark: str, index: np.ndarray
) -> Finding:
    """Turn marked rows into a finding; a row with several problems counts once, by the first.

    Args:
        rows: the method's rows.
        asked: marks the rows that were checked.
        problems: marks the broken rows of each problem.
        remark: the check.
        index: the samples' true indices.
    """
    wrong = asked & np.any([*problems.values(), np.zeros(len(asked), bool)], axis=0)
    found = Finding(rows.name, int(asked.sum()), int(asked.sum()), remark=remark)
    for row in np.flatnonzero(wrong):
        words = next(problem for problem, broken in problems.items() if broken[row])
        found.contradictions.append(f"{rows.name}, sample {index[row]}: {words}")
    found.again = found.asked - len(found.contradictions)
    return found


def of_rows(count: int, total: int) -> str:
    """Write "3 of 10 rows"."""
    return f"{count} of {counted(total, 'row')}"
