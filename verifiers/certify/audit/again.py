"""Compute rows again with the settings of the file, and compare every column."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from verifiers.certify.audit.findings import Finding, marked
from verifiers.certify.audit.proofs import proves_row
from verifiers.certify.audit.subject import Subject
from verifiers.certify.certify import certify
from verifiers.core.columns import COMMON_COLUMNS, Column
from verifiers.core.reporter import Reporter
from verifiers.core.status import FAILURES, About, Guarantee, Status
from verifiers.methods.base import ATTACKED, REPEATS, ROUNDING, Method
from verifiers.methods.registry import certifies, find, keeps
from verifiers.results.rows import Certificates, MethodRows

#: Columns that are checked in every row, without computing it again.
_PLAIN = ("index", "label", "predicted", "correct", "certified", "status")
#: A TIMEOUT is doubted if the row is answered within this share of its time limit.
SOON = 0.25
#: Differences up to this are float64's rounding, as in values that are 0 but for it.
NOTHING = 1e-12
#: A counterexample at this share of eps or further may be lost by rounding.
FAR = 0.99


def run_again(subject: Subject) -> list[Finding]:
    """Compute the chosen rows of all methods again, and all rows of attacks; compare their columns."""
    finished = _finished(subject)
    known = [rows for rows in subject.certificates if find(rows.name).runs_again]
    known = [rows for rows in known if not subject.missing_teacher(rows.name)]
    attacks = [rows for rows in known if find(rows.name).guarantee is Guarantee.ESTIMATE]
    proofs = [rows for rows in known if rows not in attacks]
    findings = []
    for methods, wanted in ((attacks, finished), (proofs, np.intersect1d(subject.chosen, finished))):
        if methods and len(wanted):
            findings += _compared(subject, methods, wanted)
    return findings


def _finished(subject: Subject) -> np.ndarray:
    """Return the rows that some method has finished."""
    done = np.any([rows["status"] != Status.PENDING for rows in subject.certificates], axis=0)
    return np.flatnonzero(done)


def _compared(subject: Subject, stored: Sequence[MethodRows], wanted: np.ndarray) -> list[Finding]:
    methods = [subject.method(rows.name).again(subject.time_limit) for rows in stored]
    subject.reporter.start("run again", len(wanted) * len(methods), 0)
    found = _certified(subject, methods, wanted)
    subject.reporter.advance(len(wanted) * len(methods))
    subject.reporter.finish("run again")
    findings = []
    for method, rows in zip(methods, stored, strict=True):
        findings.append(_finding(method, rows, found[rows.name], wanted))
        if not findings[-1].contradictions:
            findings[-1].contradictions += _raised(subject, method, rows, found[rows.name], wanted)
    return findings


def _certified(
    subject: Subject, methods: Sequence[Method], wanted: np.ndarray, eps: float | None = None
) -> Certificates:
    pair = any(method.about is About.PAIR for method in methods)
    return certify(
        subject.program.given,
        subject.data(wanted),
        subject.config(*methods, eps=eps),
        teacher=subject.teacher.given if pair and subject.teacher is not None else None,
        reporter=Reporter(),
    )


def _raised(
    subject: Subject, method: Method, stored: MethodRows, again: MethodRows, wanted: np.ndarray
) -> Iterator[str]:
    """Yield a line for each radius above the one found again that neither its method nor another one proves."""
    if not certifies(method.kind) or method.relational:
        return
    larger = stored["radius"][wanted] > again["radius"] * (1 + ROUNDING)
    for row in wanted[larger & (again["status"] == Status.CERTIFIED)]:
        one, radius = np.array([row]), float(stored["radius"][row])
        own = _certified(subject, [method], one, radius * (1 - ROUNDING))[method.kind]
        if own["radius"][0] >= own.eps or (
            keeps(method.kind) and not method.both and proves_row(subject, stored, int(row))
        ):
            continue
        yield (
            f"{stored.name}, sample {stored['index'][row]}: radius is {radius:.6g} in the file, "
            f"{again['radius'][wanted == row][0]:.6g} when it is run again, and nothing proves the larger one"
        )


def _finding(method: Method, stored: MethodRows, again: MethodRows, wanted: np.ndarray) -> Finding:
    """Compare the stored rows with the new ones, row by row."""
    asked = np.zeros(len(stored), bool)
    asked[wanted] = stored["status"][wanted] != Status.PENDING
    problems, undecided = _problems(method, _taken(stored, wanted), again)
    whole = {words: _spread(mask, wanted, len(stored)) for words, mask in problems.items()}
    found = marked(stored, asked, whole, "run again with the same settings", stored["index"])
    found.claims = int((stored["status"] != Status.PENDING).sum())
    found.again -= int((_spread(undecided, wanted, len(stored)) & asked).sum())
    return found


def _problems(method: Method, stored: MethodRows, again: MethodRows) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Mark rows that differ, by column; also mark rows that cannot be compared."""
    was, now = stored["status"], again["status"]
    soon = again["seconds"] <= SOON * float(getattr(method, "time_limit", np.inf))
    failed = np.isin(now, FAILURES) | ((was == Status.TIMEOUT) & ~soon)
    undecided = failed & (was != now)
    near = _near_the_boundary(method, stored, again)
    undecided |= near & (was != now)
    answered = ~np.isin(now, FAILURES) & ~undecided
    problems = {}
    for value in np.unique(now):
        words = f"the file says {{}}, run again it is {Status(int(value)).name}"
        for before in np.unique(was[(now == value) & (was != now)]):
            if before != Status.FALSIFIED:  # its counterexample runs again
                problems[words.format(Status(int(before)).name)] = answered & (was == before) & (now == value)
    same = (was == now) & ~np.isin(now, FAILURES)
    for column in (*COMMON_COLUMNS, *method.columns):
        if column.name in again.columns and column.name not in _PLAIN and column.units != "seconds":
            problems |= _column(method, column, stored, again, same & ~near)
    return problems, undecided | (same & method.claims_more(stored, again))


def _near_the_boundary(method: Method, stored: MethodRows, again: MethodRows) -> np.ndarray:
    """Mark rows whose attack ends so near the boundary, or so near the end of the ball, that rounding may decide it."""
    margin = np.abs(again["margin"])
    if method.guarantee is not Guarantee.ESTIMATE or not np.isfinite(margin).any():
        return np.zeros(len(again), bool)
    least = ATTACKED * ATTACKED * np.nanmean(margin)
    if "distance" not in again.columns:
        return margin <= least
    far = again["distance"] >= FAR * again.eps  # nan compares false; a counterexample itself is at the boundary
    return np.where(again["status"] == Status.FALSIFIED, far & (np.abs(stored["margin"]) <= least), margin <= least)


def _column(
    method: Method, column: Column, stored: MethodRows, again: MethodRows, asked: np.ndarray
) -> Mapping[str, np.ndarray]:
    """Mark the asked rows whose stored value is another than the new one."""
    estimate = Guarantee.ESTIMATE in (method.guarantee, column.guarantee)
    whole = not column.dtype.startswith("float")
    spread = method.spreads().get(column.name, ATTACKED if estimate else 0.0 if whole else REPEATS)
    if spread == np.inf:
        asked, spread = asked & method.repeats(stored, again).get(column.name, False), REPEATS
    was, now = stored[column.name], again[column.name]
    if whole:
        differ = asked & (was != now)
        few = differ.sum() <= int(spread * asked.sum())
        differ &= not few
    else:
        size = np.abs(now[asked & np.isfinite(now)])
        least = size.mean() if len(size) and column.name != "radius" else 0.0  # a small radius has no slack of others
        scale = np.abs(now) + least
        with np.errstate(invalid="ignore"):
            close = (np.abs(was - now) <= spread * scale + NOTHING) | (was == now) | (np.isnan(was) & np.isnan(now))
        differ = asked & ~close
    if not differ.any():
        return {}
    first = np.flatnonzero(differ)
    return {
        f"{column.name} is {was[row]:.6g} in the file, {now[row]:.6g} when it is run again": np.arange(len(was)) == row
        for row in first
    }


def _taken(rows: MethodRows, wanted: np.ndarray) -> MethodRows:
    return replace(rows, columns={name: values[wanted] for name, values in rows.columns.items()})


def _spread(mask: np.ndarray, wanted: np.ndarray, rows: int) -> np.ndarray:
    whole = np.zeros(rows, bool)
    whole[wanted] = mask
    return whole
