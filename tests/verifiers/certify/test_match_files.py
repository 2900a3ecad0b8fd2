"""Files about a pair: every sample is asked, points run again by both networks, and no forgery passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from tests.verifiers.certify.test_forgeries import Forge, marked, moved, restamped
from tests.verifiers.methods.test_complete import network_of
from tests.zoo import images
from verifiers.certify import answers
from verifiers.certify.audit.findings import Audit
from verifiers.certify.audit.meaning import disagreements
from verifiers.certify.audit.points import violation
from verifiers.certify.audit.relations import kept_radius, relation_problems
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.errors import InputError
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.results.reader import read, read_images
from verifiers.results.rows import Certificates, MethodRows
from verifiers.runtime.samples import Data

EPS, COUNT = "0.1", 10
PROVED, REFUTED = Status.CERTIFIED, Status.FALSIFIED


def networks() -> tuple[nn.Sequential, nn.Sequential, Tensor, Tensor]:
    """A student, a teacher with other weights, and images of which two have a wrong label."""
    student, teacher, x = network_of((4, 8, 3), 3), network_of((4, 8, 3), 3), images((4,), COUNT, seed=1)
    with torch.no_grad():
        labels = student(x).argmax(1)
        for weight in teacher.parameters():
            weight.add_(0.05 * torch.sin(torch.arange(weight.numel()).float()).reshape(weight.shape))
    labels[:2] = (labels[:2] + 1) % 3
    return student, teacher, x, labels


STUDENT, TEACHER, X, LABELS = networks()
QUICK = {"steps": 5, "restarts": 2, "iterations": 3, "time_limit": 20.0}


def written(path: Path, *others: str, eps: str = EPS, count: int = COUNT, **settings: Any) -> Path:
    """An honest file of match, and of other methods, about the first images."""
    match = {"kind": "match", **QUICK, **settings}
    certify(STUDENT, X[:count], LABELS[:count], eps=eps, methods=(*others, match), teacher=TEACHER, out=path)
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("match") / "match.h5", "pgd", "crown")


def audit(path: Path, teacher: nn.Module | None = TEACHER, **asked: Any) -> Audit:
    config = VerifyConfig.parse({"sample": 1000, "time_limit": 20.0, "seed": 0, **asked})
    some = slice(min(COUNT, len(read(path)["match"])))
    return verify(STUDENT, str(path), Data(X[some], LABELS[some]), config, teacher=teacher)


def forged(honest: Path, place: Path, forge: Forge) -> Path:
    path = place / "forged.h5"
    path.write_bytes(honest.read_bytes())
    with h5py.File(path, "r+") as file:
        forge(file)
    assert path.read_bytes() != honest.read_bytes(), "nothing was forged"
    return path


# Rows


def test_misclassified_samples_are_asked_too(honest: Path) -> None:
    file = read(honest)
    match, crown = file["match"], file["crown"]
    assert (crown["status"][:2] == Status.MISCLASSIFIED).all() and (match["correct"][:2] == 0).all()
    assert np.isin(match["status"], (PROVED, REFUTED, Status.TIMEOUT)).all()
    assert match.count(PROVED) and match.count(REFUTED), "the fixture tests nothing"
    assert ((match["certified"] == 1) == (match["status"] == PROVED)).all()
    assert (match["certified"][:2] == 1).any(), "no misclassified sample is proved: certified is not tested"
    assert (match["radius"] == np.where(match["status"] == PROVED, float(EPS), 0.0)).all()


def test_points_of_a_relation_contradict_no_radius(tmp_path: Path) -> None:
    """A file whose match rows stand first: a point of the pair is no counterexample of the student."""
    path = written(tmp_path / "a.h5", "crown")
    match, crown = read(path)["match"], read(path)["crown"]
    held = (match["status"] == REFUTED) & (crown["radius"] >= match["distance"])
    assert not crown.count(Status.ERROR) and (crown["status"] == PROVED).any()
    assert (match["student_class"][held] == match["predicted"][held]).all()


def test_an_attack_on_the_class_contradicts_no_relation(tmp_path: Path) -> None:
    """A counterexample of the student is no counterexample of logits that stay close."""
    path = written(tmp_path / "a.h5", "pgd", eps="0.15", count=5, property="close", tolerance=2.0)
    file = read(path)
    fooled = file["pgd"]["status"] == REFUTED
    assert (fooled & (file["match"]["status"] == PROVED)).any(), "no such sample: nothing is tested"
    assert audit(path, sample=0).holds


def test_rows_without_finite_logits_are_errors() -> None:
    network = nn.Linear(4, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[2e38] * 4, [0.0] * 4]))
    x = torch.tensor([[0.95] * 4, [0.1] * 4])
    rows = certify(network, x, torch.tensor([0, 0]), eps="0.01", methods=("match",), teacher=network, **QUICK)["match"]
    assert rows["status"][0] == Status.ERROR and rows["certified"][0] == 0
    assert rows["correct"].tolist() == [0, 1]


# Audits


def test_an_honest_file_holds(honest: Path) -> None:
    found = audit(honest)
    assert found.holds, [*found.contradictions, *found.missing]
    checks = {finding.remark.split(",")[0]: finding for finding in found.findings if finding.method == "match"}
    file = read(honest)["match"]
    assert checks["points"].claims == checks["points"].again == file.count(REFUTED)
    assert checks["attacks on the property within each ball"].again >= file.count(PROVED)
    assert checks["run again with the same settings"].claims == COUNT
    assert "attacks on the prediction within each radius" not in checks


SETTINGS = [
    {"property": "close", "tolerance": 0.5},
    {"property": "not-worse", "tolerance": 0.25},
    {"property": "transfer"},
    {"delta": 0.25},
]


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_an_honest_file_of_each_property_holds(settings: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", "joint", count=4, **settings)
    found = audit(path)
    assert found.holds, [*found.contradictions, *found.missing]


def test_without_the_teacher_a_file_does_not_hold(honest: Path) -> None:
    found = audit(honest, teacher=None, sample=0)
    assert not found.holds and not found.contradictions
    assert found.missing == ["match compares with a teacher that was not given: give the teacher"]


def pixels(change: Callable[[np.ndarray], np.ndarray], **columns: Any) -> Forge:
    """The point of a refuted row changed, and columns with it."""

    def forge(file: h5py.File) -> None:
        group = file["match"]
        row = int(np.flatnonzero(group["status"][:] == REFUTED)[0])
        group["counterexample"][row] = change(group["counterexample"][row])
        for name, value in columns.items():
            group[name][row] = value

    return forge


def refuted_as_proved(file: h5py.File) -> None:
    """A refuted row without its point, with the columns of a proof."""
    group = file["match"]
    row = int(np.flatnonzero(group["status"][:] == REFUTED)[0])
    own = group["predicted"][row]
    values = {"status": PROVED, "radius": float(EPS), "certified": 1, "margin": 0.5, "stage": 5, "distance": np.nan}
    values |= {"violation": np.nan, "student_class": own, "teacher_class": own, "counterexample": np.nan}
    for name, value in values.items():
        group[name][row] = value


def proved_as_refuted(file: h5py.File) -> None:
    """A proved row with the image as its point."""
    group = file["match"]
    row = int(np.flatnonzero(group["status"][:] == PROVED)[0])
    values = {"status": REFUTED, "radius": 0.0, "certified": 0, "margin": -0.5, "stage": 1, "distance": 0.0}
    values |= {"violation": 0.5, "teacher_class": (group["predicted"][row] + 1) % 3}
    for name, value in values.items():
        group[name][row] = value
    group["counterexample"][row] = X[row]


def as_timeout(file: h5py.File) -> None:
    """A refuted row said to be open."""
    marked("match", REFUTED, 0, status=Status.TIMEOUT, margin=-0.5, distance=np.nan, violation=np.nan)(file)


FORGERIES: list[tuple[str, Forge]] = [
    ("a status changed", marked("match", REFUTED, status=PROVED)),
    ("a status and all its columns changed", refuted_as_proved),
    ("a proof changed into the image", proved_as_refuted),
    ("a refutation hidden", as_timeout),
    ("a point moved out of the ball", pixels(lambda point: point + 0.3)),
    ("a point out of the ball at a distance to match", pixels(lambda point: 0 * point, distance=float(EPS))),
    ("a point outside the image box", pixels(lambda point: point - 5.0)),
    ("a point that breaks nothing", pixels(lambda point: np.float32(0.5) + 0 * point)),
    ("no point", pixels(lambda point: np.nan * point)),
    ("a student's class swapped", marked("match", REFUTED, student_class=-1)),
    ("a teacher's class swapped", marked("match", PROVED, 0, teacher_class=2)),
    ("both classes swapped", marked("match", PROVED, 0, student_class=2, teacher_class=2)),
    ("a larger violation", moved("match", "violation", 2.0)),
    ("a larger violation and margin", lambda file: [moved("match", n, 2.0)(file) for n in ("violation", "margin")]),
    ("another property", restamped({"match": {"property": "close", "tolerance": 0.5}})),
    ("a larger delta", restamped({"match": {"delta": 5.0}})),
    ("another eps", restamped(eps_text="0.2")),
    ("another radius", moved("match", "radius", 0.5)),
    ("another margin", moved("match", "margin", -1.0)),
    ("another stage", moved("match", "stage", 0.0)),
    ("no rounding", moved("match", "rounding", 0.0)),
    ("a margin of CROWN", moved("match", "margin", 1.01)),
    ("no such property", restamped({"match": {"property": "alike"}})),
]


@pytest.mark.parametrize(("name", "forge"), thin(FORGERIES, 4), ids=lambda value: value if type(value) is str else "")
def test_a_forgery_does_not_pass(honest: Path, tmp_path: Path, name: str, forge: Forge) -> None:
    path = forged(honest, tmp_path, forge)
    try:
        found = audit(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert found.contradictions, f"{name} passes: {[(one.remark, one.again) for one in found.findings]}"


@pytest.mark.slow
def test_the_least_thresholds_are_attacked_and_proved_again(tmp_path: Path) -> None:
    path = written(tmp_path / "a.h5", count=3, bisect=True, property="close", tolerance=0.5)
    found, least = audit(path), read(path)["match"]["least"]
    assert found.holds, [*found.contradictions, *found.missing]
    attacked = [finding for finding in found.findings if finding.remark == "attacks on the least thresholds"]
    assert [finding.again for finding in attacked] == [3] and (least > 0).all()
    broken, open_ = "breaks the property at the least threshold proved", "could not be decided again"
    for factor, words in ((0.3, (broken,)), (0.0, (broken,)), (0.99, (broken, open_))):
        found = audit(forged(path, tmp_path, moved("match", "least", factor)))
        lines = [*found.contradictions, *found.limits]
        assert any(word in line for word in words for line in lines), lines
        assert factor == 0.99 or not found.holds


def test_a_point_is_run_again_strictly(honest: Path, tmp_path: Path) -> None:
    """Equal networks never differ: a stored tie is no point of close."""
    path = forged(honest, tmp_path, pixels(lambda point: np.float32(0.5) + 0 * point))
    lines = [line for line in audit(path, sample=0).contradictions if "its point" in line]
    assert lines and all(line.startswith("match, sample ") for line in lines)


def test_a_smaller_question_is_answered_by_a_finished_file(honest: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(honest.read_bytes())
    before = path.read_bytes()
    match = {"kind": "match", **QUICK}
    again = certify(STUDENT, X, LABELS, eps=EPS, methods=(match,), teacher=TEACHER, out=path)
    assert path.read_bytes() == before and list(again.methods) == ["match"]
    np.testing.assert_array_equal(again["match"]["status"], read(honest)["match"]["status"])


# The audit's own measure


def test_the_measure_of_aviolation() -> None:
    """Literal logits: the teacher says 0 by 2; the student prefers 1 by 3."""
    student, teacher, c = torch.tensor([[1.0, 4.0, 0.0]]), torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0])
    for relation, size in (
        (Relation(), 2.0),
        (Relation(delta=0.5), 1.5),
        (Relation(delta=2.0), 0.0),
        (Relation(Property.CLOSE, tolerance=1.0), 2.0),
        (Relation(Property.CLOSE, tolerance=3.5), -0.5),
        (Relation(Property.NOT_WORSE), 5.0),
        (Relation(Property.NOT_WORSE, tolerance=6.0), -1.0),
        (Relation(Property.TRANSFER), 2.0),
    ):
        assert violation(relation, student, teacher, c).tolist() == [size], relation
    assert violation(Relation(Property.TRANSFER), student, teacher, torch.tensor([1])).item() < 0
    assert violation(Relation(), teacher, teacher, c).item() < 0


def test_stored_points_are_in_the_ball(honest: Path) -> None:
    rows = read(honest)["match"]
    chosen = np.flatnonzero(rows["status"] == REFUTED)
    points = read_images(honest, "match", "counterexample", chosen)
    assert np.isfinite(points).all() and (points >= 0).all() and (points <= 1).all()
    distance = np.abs(points.astype(float) - X.numpy()[chosen].astype(float)).max(1)
    assert (distance <= float(EPS)).all() and np.allclose(distance, rows["distance"][chosen])


# The loop


def test_no_class_attack_is_run_on_a_relation(monkeypatch: pytest.MonkeyPatch) -> None:
    """A radius of match is attacked by match itself; CROWN's is attacked by the loop."""
    asked: list[str] = []

    def attack(run: answers.Answers, *given: Any) -> np.ndarray:
        asked.append(run.kind)
        return original(run, *given)

    original = answers.Answers._attack
    monkeypatch.setattr(answers.Answers, "_attack", attack)
    match = {"kind": "match", **QUICK}
    certify(STUDENT, X[2:4], LABELS[2:4], eps=EPS, methods=("crown", match), teacher=TEACHER)
    assert asked and set(asked) == {"crown"}


def test_open_rows_are_asked_again(tmp_path: Path) -> None:
    """A row out of time says nothing: the same command tries it again, and keeps the others."""
    path = written(tmp_path / "a.h5", count=3)
    first = read(path)["match"]
    with h5py.File(path, "r+") as file:
        values = {"status": Status.TIMEOUT, "radius": 0.0, "certified": 0, "margin": np.nan, "seconds": 99.0}
        for name, value in values.items():
            file["match"][name][2] = value
    again = read(written(path, count=3))["match"]
    assert again["status"].tolist() == first["status"].tolist() and again["seconds"][2] < 99.0
    assert again["seconds"][:2].tolist() == first["seconds"][:2].tolist(), "finished rows were asked again"


def test_a_teacher_of_other_classes_is_refused_before_anything_runs() -> None:
    match = {"kind": "match", **QUICK}
    with pytest.raises(InputError, match=r"the teacher gives logits of shape \(2, 2\), the network \(2, 3\)"):
        certify(STUDENT, X, LABELS, eps=EPS, methods=(match,), teacher=network_of((4, 8, 2), 3))


# Rows of one file against one another, without a network


def rows_of(kind: str, **columns: Any) -> MethodRows:
    """One row of a method."""
    whole = {"status": PROVED, "radius": 0.1, "predicted": 0, "index": 0, "student_class": 0, "teacher_class": 0}
    values = {**whole, "distance": 0.05, **columns}
    return MethodRows(
        kind, {"eps": 0.1, "eps_text": "0.1", "norm": "linf"}, {n: np.array([v]) for n, v in values.items()}
    )


def file_of(*rows: MethodRows, arithmetic: str = "float32") -> Certificates:
    return Certificates({"arithmetic": arithmetic}, {one.name: one for one in rows})


def test_the_radius_within_which_a_class_is_kept() -> None:
    crown, joint, open_ = rows_of("crown"), rows_of("joint", radius=0.2), rows_of("ibp", status=Status.NOT_CERTIFIED)
    match, attack = rows_of("match", radius=5.0), rows_of("pgd", radius=5.0)
    assert kept_radius(file_of(crown, open_, match, attack)).tolist() == [0.1]
    assert kept_radius(file_of(crown, joint)).tolist() == [0.2]
    assert kept_radius(file_of(crown, joint), both=True).tolist() == [0.2]
    assert kept_radius(file_of(crown), both=True).tolist() == [-np.inf] == kept_radius(file_of(open_)).tolist()
    assert kept_radius(file_of(crown, arithmetic="real")).tolist() == [-np.inf]


@pytest.mark.parametrize(
    ("others", "columns", "marked_"),
    [
        ([rows_of("crown")], {"student_class": 1}, [True, False]),
        ([rows_of("crown", radius=0.04)], {"student_class": 1}, [False, False]),
        ([rows_of("crown")], {"teacher_class": 1}, [False, False]),
        ([rows_of("joint")], {"teacher_class": 1}, [False, True]),
        ([rows_of("joint")], {"student_class": 1, "teacher_class": 1}, [True, True]),
        ([], {"student_class": 1, "distance": 0.0}, [False, False]),
        ([rows_of("crown")], {"student_class": 1, "status": PROVED}, [False, False]),
    ],
)
def test_points_where_other_rows_prove_a_class(
    others: list[MethodRows], columns: dict[str, Any], marked_: list[bool]
) -> None:
    match = rows_of("match", **{"status": REFUTED, **columns})
    assert [bool(wrong[0]) for wrong in relation_problems(file_of(match, *others), match).values()] == marked_


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [("ibp", {"cross_check": 0}, False), ("smoothing", {"sigma": 0.1, "n": 100, "n0": 10}, True)],
)
def test_a_file_names_the_teacher_that_its_rows_depend_on(method: str, options: dict[str, Any], named: bool) -> None:
    found = certify(
        STUDENT,
        X[:2],
        LABELS[:2],
        eps=EPS,
        norm="linf" if method == "ibp" else "l2",
        methods=(method,),
        options=options,
        teacher=TEACHER,
    )
    assert bool(found.attributes.get("joint_teacher_sha256")) == named
    assert list(disagreements(found)) == []
