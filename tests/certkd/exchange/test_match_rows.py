"""Rows about a pair outside of certkd: rows and points are exported, and no claim about a class is made of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from certkd.comparison.outcomes import at_eps, outcomes
from certkd.exchange.adversarial import compare
from certkd.exchange.counterexamples import export_counterexamples
from certkd.exchange.rows import export_rows
from tests.verifiers.certify.test_match_files import STUDENT, TEACHER, X, written
from verifiers.core.status import Status
from verifiers.results.reader import read, read_images
from verifiers.results.rows import Certificates

COUNT = 6


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of an attack, a proof and a pair, at an eps at which each has some of both answers."""
    return written(tmp_path_factory.mktemp("rows") / "a.h5", "pgd", "crown", eps="0.15", count=COUNT)


@pytest.fixture(scope="module")
def file(path: Path) -> Certificates:
    found = read(path)
    assert found["match"].count(Status.FALSIFIED) and found["match"].count(Status.CERTIFIED), "nothing is tested"
    assert found["pgd"].count(Status.FALSIFIED), "nothing is tested"
    return found


def test_points_go_into_one_file_with_counterexamples(path: Path, file: Certificates, tmp_path: Path) -> None:
    count = sum(file[name].count(Status.FALSIFIED) for name in ("pgd", "match"))
    assert export_rows(path, tmp_path / "a.npz")[0].startswith(f"{count} counterexamples")
    with np.load(tmp_path / "a.npz") as arrays:
        mine = arrays["method"] == "match"
        rows = np.flatnonzero(file["match"]["status"] == Status.FALSIFIED)
        np.testing.assert_array_equal(arrays["index"][mine], file["match"]["index"][rows])
        np.testing.assert_array_equal(arrays["image"][mine], read_images(path, "match", "counterexample", rows))


def test_each_point_breaks_the_property(path: Path, file: Certificates) -> None:
    rows = np.flatnonzero(file["match"]["status"] == Status.FALSIFIED)
    points = torch.from_numpy(read_images(path, "match", "counterexample", rows))
    for row, point in zip(rows, points, strict=True):
        with torch.no_grad():
            student, teacher = (network(point[None])[0].double() for network in (STUDENT, TEACHER))
        first, second = teacher.topk(2).values
        c = int(teacher.argmax())
        assert first > second and student.max() > student[c], f"row {row}: the stored point breaks nothing"
        assert file["match"]["teacher_class"][row] == c and file["match"]["student_class"][row] == int(student.argmax())
        assert float((point - X[row]).abs().max()) <= file["match"].eps + 1e-9


def test_points_about_a_pair_are_no_counterexamples_of_a_class(path: Path, file: Certificates, tmp_path: Path) -> None:
    """A folder of VNN-COMP's counterexamples has those of the network alone."""
    (line,) = export_counterexamples(path, tmp_path / "folder", STUDENT)
    count = file["pgd"].count(Status.FALSIFIED)
    assert line.startswith(f"{count} counterexample")
    assert all(found.name.startswith("pgd-") for found in (tmp_path / "folder").iterdir())


def test_rows_go_into_tables(path: Path, file: Certificates, tmp_path: Path) -> None:
    export_rows(path, tmp_path / "a.csv")
    with open(tmp_path / "a.csv", encoding="utf-8") as text:
        lines = [line for line in csv.DictReader(text) if line["method"] == "match"]
    assert len(lines) == len(file["match"])
    for line, status, violation in zip(lines, file["match"]["status"], file["match"]["violation"], strict=True):
        assert line["status"] == Status(int(status)).name
        assert np.isnan(violation) == np.isnan(float(line["violation"] or "nan"))
    export_rows(path, tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert document["methods"]["match"]["property"] == "same-class" and document["methods"]["match"]["delta"] == 0.0


def test_an_adversarial_image_contradicts_no_row_about_a_pair(path: Path, file: Certificates) -> None:
    """Images that change the student's class contradict radii of CROWN that hold them, and never match."""
    rows = np.flatnonzero(file["pgd"]["status"] == Status.FALSIFIED)
    attacked = X[:COUNT].clone()
    attacked[rows] = torch.from_numpy(read_images(path, "pgd", "counterexample", rows))
    claims = {name: value.copy() for name, value in file["match"].columns.items()}
    claims["radius"][:], claims["status"][:] = 1.0, Status.CERTIFIED
    object.__setattr__(file["match"], "columns", claims)
    found = compare(file, STUDENT, X[:COUNT], {"adv": attacked})
    assert not found.contradictions and not any("against match" in line for line in found.lines)
    assert any("against crown" in line for line in found.lines)


def test_outcomes_and_accuracies_leave_them_out(path: Path) -> None:
    file = read(path)
    assert at_eps(file["match"]) is None
    without = Certificates(file.attributes, {name: file[name] for name in ("pgd", "crown")}, file.path)
    assert outcomes([file]) == outcomes([without])
    assert sum(outcomes([file]).values()) == COUNT
