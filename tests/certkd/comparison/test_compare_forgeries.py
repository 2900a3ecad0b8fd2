"""Forged files without their network: what the files themselves contradict is not compared, and the rest is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from certkd.comparison.compare import compare
from certkd.report import tables
from certkd.report.tables.comparison import STATED
from tests.certificate_files import Content, write_file
from tests.certkd.comparison.test_compare import columns, refusal
from tests.marks import thin
from tests.verifiers.certify.test_forgeries import (
    FILES,
    OPEN,
    SUBJECT,
    SURE,
    Forge,
    hidden,
    marked,
    moved,
    raised,
    scaled,
)
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.rows import Certificates

EPS = 0.1
KINDS = ("proofs", "pair", "votes")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """The teacher's file and the student's, by kind; the pair's has rows about the teacher."""
    folder, swapped = tmp_path_factory.mktemp("honest"), replace(SUBJECT, network=SUBJECT.teacher)
    found = {}
    for kind in KINDS:
        more = {"methods": ("pgd", "crown", "joint", "transfer"), "eps": "0.15"} if kind == "pair" else {}
        alone: dict[str, Any] = (
            {**more, "methods": ("pgd", "crown"), "options": FILES["pair"]["options"]} if more else {}
        )
        place = folder / f"{kind}-teacher.h5", folder / f"{kind}-student.h5"
        swapped.certified(place[0], "proofs" if kind == "pair" else kind, **alone)
        SUBJECT.certified(place[1], kind, **more)
        found[kind] = place
    return found


def forged(honest: dict[str, tuple[Path, Path]], kind: str, forge: Forge, folder: Path) -> list[Certificates]:
    teacher, student = honest[kind]
    path = folder / "forged.h5"
    path.write_bytes(student.read_bytes())
    with h5py.File(path, "r+") as file:
        forge(file)
    assert path.read_bytes() != student.read_bytes(), "nothing was forged"
    return [read(teacher), read(path)]


@pytest.mark.parametrize("kind", KINDS)
def test_honest_files_are_compared_and_their_basis_is_said(honest: dict[str, tuple[Path, Path]], kind: str) -> None:
    result = compare(*map(read, honest[kind]))
    assert result.retention.cases
    parts = tables.comparison(result, "teacher", "student")
    assert parts[-1] == STATED and "\n" not in STATED and "certkd verify" in STATED


REFUSED: dict[str, tuple[str, Forge, str]] = {
    "all radii doubled": ("proofs", scaled("crown", 2.0), "crown, sample "),
    "a radius beyond a counterexample": ("proofs", raised("ibp", 0.15), "its radius contains a counterexample"),
    "a larger margin": ("proofs", marked("crown", SURE, margin=50.0), "its margin is above one that an attack found"),
    "certified pairs": ("pair", raised("joint", 1.0), "joint, sample "),
    "certified transfers": ("pair", raised("transfer", 1.0), "its radius contains a counterexample of the file"),
    "a smaller deficit": ("pair", moved("joint", "deficit", 1.0, -50.0), "its deficit is below the difference"),
    "radii without votes": ("votes", raised("smoothing", 0.6), "its radius is not that of its bound"),
    "bounds without votes": ("votes", moved("smoothing", "p_lower", 0.99), "its radius does not follow"),
    "other votes": ("votes", moved("smoothing", "votes", 2.0), "smoothing, sample "),
    "hidden counterexamples": ("proofs", hidden("pgd", OPEN, margin=-0.3), "no counterexample is stored and its"),
    "another status": (
        "proofs",
        marked("crown", SURE, status=OPEN),
        "it has no radius and is certified, or the reverse",
    ),
}


@pytest.mark.parametrize("name", thin(REFUSED))
def test_what_a_file_contradicts_is_refused(honest: dict[str, tuple[Path, Path]], name: str, tmp_path: Path) -> None:
    kind, forge, words = REFUSED[name]
    message = refusal(*forged(honest, kind, forge, tmp_path))
    assert words in message and "forged.h5 contradicts" in message, message
    if kind == "proofs":
        assert refusal(*reversed(forged(honest, kind, forge, tmp_path))), "the teacher's file may be forged too"


def test_what_only_the_network_shows_is_believed(honest: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """Counterexamples taken out with margins to match leave no trace; the audit attacks again."""
    result = compare(*forged(honest, "proofs", hidden("pgd", OPEN), tmp_path))
    assert result.student.pgd > compare(*map(read, honest["proofs"])).student.pgd
    assert tables.comparison(result, "t", "s")[-1] == STATED


# Literal rows about a pair


def rows(status: int, radius: float, **own: float) -> dict[str, np.ndarray]:
    """Four rows; all but the first are undecided, without columns of their own."""
    found = columns(np.ones(4, bool), np.array([status, *[OPEN] * 3]), np.array([radius, 0.0, 0.0, 0.0]))
    found["margin"] = np.where(found["radius"] >= EPS, 0.5, -0.5)
    return {**found, **{name: np.array([value, *[np.nan] * 3]) for name, value in own.items()}}


def attacked(margin: float, distance: float = np.nan) -> dict[str, np.ndarray]:
    broken = np.isfinite(distance)
    found = rows(Status.FALSIFIED if broken else OPEN, 0.0)
    found["margin"], found["distance"] = np.array([margin, 1.0, 1.0, 1.0]), np.array([distance, *[np.nan] * 3])
    return found


HASHES = {"model_sha256": "teacher", "structure_sha256": "layers", "arithmetic": "float32"}
PAIR = {"joint_teacher_sha256": "teacher", "joint_teacher_structure_sha256": "layers"}


def pair(folder: Path, teacher: Content, student: Content, **changes: Any) -> list[Certificates]:
    about = {**HASHES, "model_sha256": "student", **PAIR, **changes}
    return [
        write_file(folder / "t.h5", teacher, eps=EPS, **HASHES),
        write_file(folder / "s.h5", student, eps=EPS, **about),
    ]


JOINT = {"gap": 1.0, "deficit": 1.0}
Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def another_class(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    for each in teacher.values():
        each["predicted"][0], each["correct"][0], each["radius"][0], each["certified"][0] = 1, 0, 0.0, 0
        each["status"][0] = Status.MISCLASSIFIED


def falsified(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    teacher["crown"] = rows(OPEN, 0.0)
    teacher["pgd"] = attacked(-1.0, 0.09)


def lower(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    teacher["pgd"] = attacked(0.3)
    teacher["crown"] = rows(OPEN, 0.0)


def too_close(teacher: dict[str, Any], student: dict[str, Any]) -> None:
    teacher["crown"]["margin"][0], teacher["pgd"] = 4.0, attacked(5.0)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (another_class, "it is certified and the teacher predicts another class"),
        (falsified, "its radius contains a counterexample of the teacher's file"),
        (lower, "its margin is above one that an attack on the teacher found"),
        (too_close, "its deficit is below the difference of the teacher's bound and the student's attack"),
    ],
)
def test_rows_that_the_teachers_file_contradicts(tmp_path: Path, edit: Edit, words: str) -> None:
    teacher = {"pgd": attacked(2.0), "crown": rows(SURE, 0.12)}
    student = {"pgd": attacked(2.0), "crown": rows(SURE, 0.12), "joint": rows(SURE, 0.1, **JOINT)}
    edit(teacher, student)
    files = pair(tmp_path, teacher, student)
    assert refusal(*files) == (
        f"{files[1].path} contradicts {files[0].path}: joint, sample 100: {words}; certify both again"
    )


def test_nothing_is_held_against_rows_about_another_teacher(tmp_path: Path) -> None:
    teacher = {"pgd": attacked(2.0), "crown": rows(SURE, 0.12)}
    student = {"pgd": attacked(2.0), "crown": rows(SURE, 0.12), "joint": rows(SURE, 0.1, **JOINT)}
    assert compare(*pair(tmp_path, teacher, student)).retention.hits == 1, "nothing is wrong yet"
    falsified(teacher, student)
    (tmp_path / "other").mkdir()
    compare(*pair(tmp_path / "other", teacher, student, joint_teacher_sha256="another"))


def test_bounds_of_the_teachers_margin_are_below_its_attack(tmp_path: Path) -> None:
    own = {"teacher": 0.9, "theorem_a": 0.5, "theorem_b": -1.0, "joint": -1.0, "theorem_c1": 1.0, "theorem_c2": 1.0}
    teacher = {"pgd": attacked(0.7), "crown": rows(OPEN, 0.0)}
    student = {"pgd": attacked(2.0), "crown": rows(SURE, 0.1), "transfer": rows(SURE, 0.1, **own)}
    message = refusal(*pair(tmp_path, teacher, student))
    assert "its bound of the teacher's margin is above one that an attack on the teacher found" in message


def test_margins_of_float32_say_nothing_about_real_arithmetic(tmp_path: Path) -> None:
    content = {"pgd": attacked(0.3), "crown": rows(SURE, 0.12)}
    for arithmetic in ("float32", "real"):
        files = [
            write_file(tmp_path / f"{arithmetic}{i}.h5", content, eps=EPS, arithmetic=arithmetic, model_sha256=str(i))
            for i in range(2)
        ]
        if arithmetic == "real":
            compare(*files)
        else:
            assert "its margin is above one that an attack found" in refusal(*files)


def test_several_rows_of_a_problem_are_one_line(tmp_path: Path) -> None:
    content = {"crown": rows(SURE, 0.12)}
    content["crown"]["certified"][:] = [0, 1, 0, 1]
    files = [write_file(tmp_path / f"{i}.h5", content, eps=EPS, model_sha256=str(i)) for i in range(2)]
    assert "sample 100: certified at eps is not what its radius says (and 2 others)" in refusal(*files)
