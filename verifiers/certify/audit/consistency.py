"""Check the rows of a certificate file against one another, without a network; no torch."""

from collections.abc import Iterator

import numpy as np

from verifiers.certify.audit.meaning import method_of
from verifiers.certify.audit.relations import identity_problems, relation_problems
from verifiers.core.errors import InputError
from verifiers.core.quantities import DEPLOYED, Arithmetic
from verifiers.core.status import FAILURES, About, Guarantee, Status
from verifiers.core.table import counted
from verifiers.methods.base import REPEATS, Problems
from verifiers.methods.registry import certifies, find, proves
from verifiers.results.rows import Certificates, MethodRows


def broken_rows(certificates: Certificates) -> Iterator[str]:
    """Yield what is wrong with the rows of a file, with the first such row; a line for each problem of a method."""
    pixels = certificates.attributes.get("pixels")
    for rows in certificates:
        yield from lines_of(rows, problems_of(certificates, rows, pixels))


def lines_of(rows: MethodRows, problems: Problems) -> Iterator[str]:
    """Put marked rows into words; a line for each problem."""
    for words, wrong in problems.items():
        if wrong.any():
            first, others = int(np.flatnonzero(wrong)[0]), int(wrong.sum()) - 1
            more = f" (and {counted(others, 'other')})" if others else ""
            yield f"{rows.name}, sample {rows['index'][first]}: {words}{more}"


def problems_of(certificates: Certificates, rows: MethodRows, pixels: int | None) -> Problems:
    """Mark finished rows of a method that contradict themselves, or other rows of the file.

    Args:
        certificates: the file.
        rows: of one of its methods.
        pixels: values of an image; None if unknown.
    """
    status, done = rows["status"], rows["status"] != Status.PENDING
    correct, method = rows["correct"] == 1, find(rows.name)
    if method.relational:
        found = {
            **row_problems(rows),
            **relation_problems(certificates, rows),
            **identity_problems(certificates, rows),
        }
    else:
        wrong = np.isin(status, (Status.MISCLASSIFIED, *FAILURES)) | (method.about is About.SMOOTHED)
        contains = (rows["radius"] > 0) & (rows["radius"] >= nearest_counterexample(certificates))
        found = {
            "its radius contains a counterexample of the file": contains & np.bool_(proves(rows.name)),
            "its margin is above one that an attack found": _above(rows, lowest_attacked(certificates)),
            **row_problems(rows),
            "it is wrong and has an answer": ~correct & ~wrong,
        }
    return {**{words: broken & done for words, broken in found.items()}, **_own_problems(certificates, rows, pixels)}


def row_problems(rows: MethodRows) -> Problems:
    """Mark rows whose common columns do not follow from one another."""
    status, radius, correct = rows["status"], rows["radius"], rows["correct"] == 1
    relational = np.bool_(find(rows.name).relational)
    certified = (correct | relational) & (radius >= rows.eps)
    return {
        "it is correct and its prediction is not its label": correct & (rows["predicted"] != rows["label"]),
        "it is an estimate and certified": (status == Status.CERTIFIED) & ~np.bool_(certifies(rows.name)),
        "it is certified and misclassified": (status == Status.CERTIFIED) & ~correct & ~relational,
        "it is misclassified and correct": (status == Status.MISCLASSIFIED) & (correct | relational),
        "it has no radius and is certified, or the reverse": (status == Status.CERTIFIED) != (radius > 0),
        "certified at eps is not what its radius says": (rows["certified"] == 1) != certified,
    }


def _own_problems(certificates: Certificates, rows: MethodRows, pixels: int | None) -> Problems:
    """Mark what the method itself says about its columns."""
    answered = ~np.isin(rows["status"], [Status.PENDING, *(one for one in FAILURES if one is not Status.TIMEOUT)])
    try:
        method = method_of(certificates, rows.name)
    except InputError as error:
        return {str(error): answered}
    found = method.problems(rows, certificates.path, pixels)
    return {words: broken & answered for words, broken in found.items()}


def nearest_counterexample(certificates: Certificates) -> np.ndarray:
    """Return the distance of the nearest stored counterexample of each row; inf if there is none.

    Over the real numbers there is none without the network: stored counterexamples are those of float32.
    """
    nearest = np.full(len(next(iter(certificates))), np.inf)
    if certificates.attributes.get("arithmetic") == Arithmetic.REAL:
        return nearest
    for rows in certificates:
        if "distance" in rows.columns and not find(rows.name).relational:
            found = np.where(rows["status"] == Status.FALSIFIED, rows["distance"], np.inf)
            nearest = np.fmin(nearest, found)
    return nearest


def lowest_attacked(certificates: Certificates) -> np.ndarray:
    """Return the smallest margin at eps that an attack on the network found for each row; inf if there is none.

    Over the real numbers there is none: an attack's margins are those of float32.
    """
    lowest = np.full(len(next(iter(certificates))), np.inf)
    if certificates.attributes.get("arithmetic") not in DEPLOYED:
        return lowest
    for rows in certificates:
        method, answered = find(rows.name), np.isin(rows["status"], [Status.FALSIFIED, Status.NOT_CERTIFIED])
        if method.guarantee is Guarantee.ESTIMATE and method.about is About.NETWORK:
            lowest = np.fmin(lowest, np.where(answered, rows["margin"], np.inf))
    return lowest


def _above(rows: MethodRows, lowest: np.ndarray) -> np.ndarray:
    """Mark certified rows with a bound of the margin at eps above the margin of a point in the ball."""
    return _certified(rows) & (rows["margin"] > lowest + REPEATS * np.abs(lowest))


def _certified(rows: MethodRows) -> np.ndarray:
    return (rows["status"] == Status.CERTIFIED) & np.bool_(proves(rows.name))


# A student's rows about its teacher, and the teacher's own


def pair_problems(teacher: Certificates, rows: MethodRows, lowest: np.ndarray) -> Problems:
    """Mark a student's rows about its teacher that the teacher's own file contradicts.

    A certified row says that the teacher predicts the student's class everywhere within the radius.

    Args:
        teacher: the teacher's file, about the same samples in the same order, at the same eps.
        rows: of a method about the pair, from the student's file.
        lowest: the smallest margins that attacks on the student found; inf if there is none.
    """
    certified = _certified(rows)
    attacked, same = lowest_attacked(teacher), _predicted(teacher) == rows["predicted"]
    found: dict[str, np.ndarray] = {
        "it is certified and the teacher predicts another class": certified & ~same,
        "its radius contains a counterexample of the teacher's file": certified
        & (rows["radius"] >= nearest_counterexample(teacher)),
    }
    if find(rows.name).both:
        found["its margin is above one that an attack on the teacher found"] = same & _above(rows, attacked)
    if "teacher" in rows.columns:
        above = rows["teacher"] > attacked + REPEATS * np.abs(attacked)
        found["its bound of the teacher's margin is above one that an attack on the teacher found"] = same & above
    if find(rows.name).both and "deficit" in rows.columns:  # the deficit at the student's attacked point
        least = _proved_margin(teacher) - lowest
        below = rows["deficit"] < least - REPEATS * np.abs(least)
        found["its deficit is below the difference of the teacher's bound and the student's attack"] = same & below
    answered = np.isin(rows["status"], [Status.CERTIFIED, Status.NOT_CERTIFIED])
    return {words: wrong & answered for words, wrong in found.items()}


def _predicted(certificates: Certificates) -> np.ndarray:
    """Return the class that the network itself predicts."""
    first = next(iter(certificates))
    return first["base" if find(first.name).about is About.SMOOTHED else "predicted"]


def _proved_margin(certificates: Certificates) -> np.ndarray:
    """Return the largest bound from below of the margin at eps; -inf without one."""
    best = np.full(len(next(iter(certificates))), -np.inf)
    for rows in certificates:
        if find(rows.name).about is About.NETWORK:
            best = np.fmax(best, np.where(_certified(rows), rows["margin"], -np.inf))
    return best
