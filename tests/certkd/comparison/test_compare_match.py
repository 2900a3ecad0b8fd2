"""Rows about a pair in a comparison: counted apart, and refused where other rows of both files contradict them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certkd.comparison.compare import compare, figures
from certkd.report import tables
from tests.certificate_files import write_file
from tests.certkd.comparison.test_compare import refusal
from verifiers.core.status import Status
from verifiers.results.rows import Certificates
from verifiers.results.summaries.match import Stage

EPS, COUNT = 0.1, 4
SURE, OPEN, BROKEN = Status.CERTIFIED, Status.NOT_CERTIFIED, Status.FALSIFIED
HASHES = {"model_sha256": "teacher", "structure_sha256": "layers", "arithmetic": "float32"}
PAIR = {"joint_teacher_sha256": "teacher", "joint_teacher_structure_sha256": "layers"}
Columns = dict[str, np.ndarray]


def column(first: float, others: float = 0.0) -> np.ndarray:
    """A value of the sample that a test is about, and of the others."""
    return np.array([first, *[others] * (COUNT - 1)])


def common(status: int, radius: float) -> Columns:
    """Correct rows of which the first is in a status."""
    whole = {"index": np.arange(COUNT) + 100, "label": np.zeros(COUNT), "predicted": np.zeros(COUNT)}
    correct = {"correct": np.ones(COUNT), "radius": column(radius), "seconds": np.zeros(COUNT)}
    certified = column(float(radius >= EPS))
    return {**whole, **correct, "status": column(status, OPEN), "certified": certified, "margin": column(-0.5, -0.5)}


def crown(radius: float = 0.0) -> Columns:
    """CROWN's rows; it proves the first sample within a radius."""
    return {**common(SURE if radius else OPEN, radius), "margin": column(0.5 if radius >= EPS else -0.5, -0.5)}


def pgd(distance: float = np.nan) -> Columns:
    """The attack's rows; it has a counterexample to the first sample at a distance."""
    found = common(OPEN if np.isnan(distance) else BROKEN, 0.0)
    return {
        **found,
        "margin": column(0.25 if np.isnan(distance) else -0.25, 0.25),
        "distance": column(distance, np.nan),
    }


def match(state: int, **own: float) -> Columns:
    """Rows of match; the first is proved by CROWN, refuted by the attack at eps, or open. The others are proved."""
    found = {name: np.full(COUNT, np.nan) for name in ("distance", "violation", "least", "rounding")}
    found |= {name: np.zeros(COUNT) for name in ("student_class", "teacher_class", "domains")}
    found |= {**common(SURE, EPS), "status": column(SURE, SURE), "radius": column(EPS, EPS)}
    found |= {"certified": column(1, 1), "margin": column(0.5, 0.5), "stage": np.full(COUNT, float(Stage.CROWN))}
    if state != SURE:
        found["radius"][0], found["certified"][0], found["margin"][0] = 0.0, 0.0, -0.25
    if state == BROKEN:
        found["distance"][0], found["violation"][0], found["stage"][0] = EPS, 0.25, Stage.ATTACK
        found["student_class"][0] = 1
    found["status"][0] = state
    for name, value in own.items():
        found[name][0] = value
    return found


def pair(
    folder: Path, teacher: dict[str, Columns], student: dict[str, Columns], **settings: Any
) -> tuple[Certificates, Certificates]:
    about = {**HASHES, "model_sha256": "student", **PAIR}
    return (
        write_file(folder / "t.h5", teacher, eps=EPS, **HASHES),
        write_file(folder / "s.h5", student, eps=EPS, settings={"match": {**QUIET, **settings}}, **about),
    )


QUIET = {"property": "same-class"}


@pytest.mark.parametrize("status", [SURE, BROKEN, Status.TIMEOUT])
def test_honest_rows_are_compared_and_counted_apart(tmp_path: Path, status: Status) -> None:
    files = pair(tmp_path, {"crown": crown(0.12)}, {"crown": crown(0.05), "match": match(status, teacher_class=0)})
    result = compare(*files)
    assert result.methods == ("crown",) and result.retention.hits == 0 and result.student.certified == 0
    assert result.match is not None and result.match.proved == COUNT - (status != SURE)
    assert result.match.refuted == (status == BROKEN) and sum(result.match.open.values()) == (status == Status.TIMEOUT)
    document = json.loads(json.dumps(result.to_dict()))["match"]
    assert document["samples"] == COUNT and document["kind"] == "same-class"
    assert document["sentence"] == result.match.sentence
    assert tables.pair_summaries(*files)[0] == result.match.sentence


def test_proved_pairs_are_no_certified_accuracy(tmp_path: Path) -> None:
    _, student = pair(tmp_path, {"crown": crown()}, {"crown": crown(), "match": match(SURE)})
    assert student["match"].at_eps == COUNT and figures(student).certified == 0 == figures(student).mean_radius
    (contents, _), lines = tables.contents(student), {}
    assert not isinstance(contents, str)
    lines = {row[0]: list(row) for row in contents.rows}
    assert lines["match"][1:4] == [str(COUNT), "-", "-"] and lines["crown"][1:3] == ["0", ">= 0.0%"]


def test_rows_about_another_teacher_are_not_counted(tmp_path: Path) -> None:
    teacher, student = pair(tmp_path, {"crown": crown(0.12)}, {"crown": crown(0.12), "match": match(SURE)})
    stranger = write_file(tmp_path / "o.h5", {"crown": crown(0.12)}, eps=EPS, **{**HASHES, "model_sha256": "another"})
    assert compare(teacher, student).match is not None and compare(stranger, student).match is None


def test_a_file_of_match_alone_is_not_compared(tmp_path: Path) -> None:
    assert "have no certificate method" in refusal(*pair(tmp_path, {"crown": crown()}, {"match": match(SURE)}))


PROVED = {"crown": crown(0.12)}
#: The teacher's rows, the student's, and what contradicts them.
CONTRADICTIONS: list[tuple[dict[str, Columns], dict[str, Columns], dict[str, Any], str]] = [
    (
        PROVED,
        {"crown": crown(0.12), "match": match(BROKEN, student_class=1)},
        {},
        "its point has another class, and is where the network provably keeps its own",
    ),
    (
        PROVED,
        {"crown": crown(), "match": match(BROKEN, student_class=0, teacher_class=1)},
        {},
        "the teacher has another class at its point, where it provably keeps its own",
    ),
    (
        {"crown": {**crown(), "predicted": column(2), "correct": column(0, 1), "status": column(4, OPEN)}},
        {"crown": crown(), "match": match(SURE)},
        {},
        "the teacher predicts another class",
    ),
    (
        PROVED,
        {"crown": crown(), "pgd": pgd(0.09), "match": match(SURE)},
        {},
        "it is proved, and one network keeps its class at a counterexample of the other",
    ),
    (
        PROVED,
        {"crown": crown(), "pgd": pgd(0.09), "match": match(SURE)},
        {"property": "transfer"},
        "it is proved, and one network keeps its class at a counterexample of the other",
    ),
    (
        {"crown": crown(), "pgd": pgd(0.09)},
        {"crown": crown(0.12), "match": match(SURE)},
        {},
        "it is proved, and one network keeps its class at a counterexample of the other",
    ),
    (
        PROVED,
        {"crown": crown(), "match": match(BROKEN, student_class=1, teacher_class=2)},
        {"property": "transfer"},
        "the teacher predicts another class",
    ),
    (PROVED, {"crown": crown(), "match": match(SURE, status=BROKEN)}, {}, "it has no radius and is certified, or the"),
    (PROVED, {"crown": crown(), "match": match(BROKEN, distance=0.2)}, {}, "its point is outside the ball"),
    (PROVED, {"crown": crown(), "match": match(BROKEN, student_class=0)}, {}, "both networks give its point one class"),
    (PROVED, {"crown": crown(), "match": match(SURE, certified=0)}, {}, "certified at eps is not what its radius says"),
    (PROVED, {"crown": crown(), "match": match(SURE, status=4)}, {}, "it is misclassified and correct"),
]


@pytest.mark.parametrize(("teacher", "student", "settings", "words"), CONTRADICTIONS, ids=range(len(CONTRADICTIONS)))
def test_rows_that_other_rows_contradict(
    tmp_path: Path, teacher: dict[str, Columns], student: dict[str, Columns], settings: dict[str, Any], words: str
) -> None:
    message = refusal(*pair(tmp_path, teacher, student, **settings))
    assert f"match, sample 100: {words}" in message and "s.h5 contradicts" in message, message


HONEST: list[tuple[dict[str, Columns], dict[str, Columns], dict[str, Any]]] = [
    ({"crown": crown(0.05)}, {"crown": crown(), "pgd": pgd(0.09), "match": match(SURE)}, {}),
    (PROVED, {"crown": crown(), "pgd": pgd(0.09), "match": match(SURE)}, {"delta": 0.5}),
    (PROVED, {"crown": crown(), "pgd": pgd(0.09), "match": match(SURE)}, {"property": "close", "tolerance": 0.5}),
    ({"crown": crown(), "pgd": pgd(0.09)}, {"crown": crown(0.12), "match": match(SURE)}, {"property": "transfer"}),
    (PROVED, {"crown": crown(0.09), "match": match(BROKEN)}, {}),
    (PROVED, {"crown": crown(0.12), "match": match(BROKEN, student_class=0)}, {"property": "not-worse"}),
]


@pytest.mark.parametrize(("teacher", "student", "settings"), HONEST, ids=range(len(HONEST)))
def test_rows_that_nothing_contradicts(
    tmp_path: Path, teacher: dict[str, Columns], student: dict[str, Columns], settings: dict[str, Any]
) -> None:
    """A counterexample beyond the other network's radius, a relation that is not about classes, or another order."""
    assert compare(*pair(tmp_path, teacher, student, **settings)).match is not None


def test_points_of_float32_say_nothing_about_proofs_over_the_reals(tmp_path: Path) -> None:
    teacher, student = PROVED, {"crown": crown(0.12), "match": match(BROKEN, student_class=1)}
    real = {"arithmetic": "real"}
    files = (
        write_file(tmp_path / "t.h5", teacher, eps=EPS, **{**HASHES, **real}),
        write_file(tmp_path / "s.h5", student, eps=EPS, **{**HASHES, "model_sha256": "student", **PAIR, **real}),
    )
    assert compare(*files).match is not None
