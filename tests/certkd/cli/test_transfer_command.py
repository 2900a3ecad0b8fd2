"""``certkd transfer``, what ``compare`` says of it and ``run``, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from certkd.comparison.carried_over import MISCLASSIFIED, CarriedOver
from certkd.comparison.compare import compare
from certkd.comparison.requirement import Requirement
from certkd.report import tables
from tests.certifying import certify
from tests.cli import certkd
from tests.paths import REFERENCE
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.results.summaries.transfer import REASONS, Blocker

pytestmark = pytest.mark.slow


TEACHER, STUDENT = (REFERENCE / f"{name}.pt" for name in ("teacher", "kdiga"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference pair on 40 samples at 0.05, by the command."""
    folder = tmp_path_factory.mktemp("transfer")
    paths = {"teacher": folder / "t.h5", "student": folder / "s.h5"}
    networks = ("--teacher", TEACHER, "--student", STUDENT)
    out = ("--teacher-out", paths["teacher"], "--out", paths["student"])
    done = certkd("transfer", *networks, "--eps", "0.05", "--limit", "40", *out, "--require", "kept>=0.5")
    assert done.code == 0, done.err
    (folder / "printed").write_text(done.out)
    return {**paths, "printed": folder / "printed"}


def test_the_command_prints_what_is_kept(files: dict[str, Path]) -> None:
    printed = files["printed"].read_text()
    assert "Including what carries over from the teacher, it keeps" in printed
    for text in ("Bounds that certify the student at eps", "C2: as A, in the cross-entropy", "gradient gap, eps b"):
        assert text in printed
    assert "both provably predict" in printed and "is proved on" in printed


def test_rows_of_the_reference_pair_agree_with_each_other(files: dict[str, Path]) -> None:
    student = read(files["student"])
    rows, crown, joint = (student[name] for name in ("transfer", "crown", "joint"))
    asked = np.isfinite(rows["deficit"])
    assert ((rows["direct"] > 0) <= (crown["certified"] == 1))[asked].all()
    assert (rows["status"][~asked] == Status.MISCLASSIFIED).all()
    carried = rows["status"] == Status.CERTIFIED
    assert carried.sum() > 5 and (rows["radius"][carried] == 0.05).all()
    assert (rows["teacher"] - np.maximum(joint["deficit"], 0) <= rows["joint"] + 1e-6)[asked].all()
    pgd = student["pgd"]["status"] == Status.FALSIFIED
    assert not (carried & pgd).any()


def test_compare_repeats_what_is_kept_and_can_require_it(files: dict[str, Path]) -> None:
    plain = certkd("compare", files["teacher"], files["student"])
    assert plain.code == 0 and "Including what carries over from the teacher" in plain.out
    as_json = json.loads(certkd("compare", files["teacher"], files["student"], "--json").out)
    carried = as_json["carried_over"]
    assert carried["held"] == carried["direct"] + carried["through"] + sum(carried["blocked"].values())
    assert as_json["metrics"]["kept"] == pytest.approx((carried["direct"] + carried["through"]) / carried["held"])
    assert set(carried["blocked"]) <= {*REASONS.values(), MISCLASSIFIED, "without an answer"}
    refused = certkd("compare", files["teacher"], files["student"], "--require", "kept>=1.01")
    assert refused.code == 1 and "not met: kept>=1.01" in refused.err


def test_another_teacher_gives_no_counts(files: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "kd.h5"
    arguments = ("--eps", "0.05", "--limit", "40", "--methods", "pgd,crown", "--out", other)
    assert certkd("certify", "--model", REFERENCE / "kd.pt", *arguments).code == 0
    result = compare(read(other), read(files["student"]))
    assert result.carried_over is None
    asked = certkd("compare", other, files["student"], "--require", "kept>=0.5")
    assert (
        asked.code == 2
        and "kept needs rows of the method transfer about this teacher" in asked.err
        and "\n" not in asked.err.strip()
    )


def test_what_is_asked_wrongly(tmp_path: Path) -> None:
    one = ("certify", "--model", STUDENT, "--eps", "0.05")
    both = (*one, "--teacher", TEACHER, "--methods")
    command = ("transfer", "--teacher", TEACHER, "--student", STUDENT)
    for arguments, said in (
        (command, "eps"),
        (("transfer", "--teacher", "gone.pt", "--student", STUDENT, "--eps", "0.05"), "gone.pt"),
        ((*command, "--eps", "0.05", "--require", "keppt>=1"), "kept"),
        ((*one, "--require", "kept>=1"), "--teacher"),
        ((*one, "--methods", "crown,transfer"), "--teacher"),
        ((*one, "--methods", "lipschitz", "--option", "constants=loose"), "loose"),
        ((*both, "transfer"), "crown,transfer"),
        ((*both, "crown,transfer", "--option", "steps=0"), "method transfer: steps must be at least 1, got 0"),
        ((*both, "crown", "--require", "kept>=0.9"), "needs the method transfer"),
    ):
        done = certkd(*arguments)
        assert done.code == 2 and said in done.err and len(done.err.strip().splitlines()) <= 3, done.err


def fixed(weight: float, bend: float = 0.0) -> nn.Module:
    """Two classes on two pixels; the margin falls with the first one, and bends down behind 0.55."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -0.55]))
        model[3].weight.copy_(torch.tensor([[-weight, -bend], [0.0, 0.0]]))
        model[3].bias.copy_(torch.tensor([0.5 * weight + 1.0, 0.0]))
    return model


def pair(student: nn.Module, teacher: nn.Module, y: int = 0) -> tuple[Certificates, Certificates]:
    x, label = torch.full((1, 2), 0.5), torch.tensor([y])
    return (
        certify(teacher, x, label, eps=0.1, methods=["crown"]),
        certify(student, x, label, eps=0.1, methods=["crown", "transfer"], teacher=teacher),
    )


@pytest.mark.parametrize(
    ("student", "blocker"),
    [(fixed(12.0), Blocker.GRADIENT), (fixed(1.0, bend=40.0), Blocker.STUDENT)],
    ids=["gradient", "bend"],
)
def test_a_lost_sample_is_counted_under_what_blocks_it(student: nn.Module, blocker: Blocker) -> None:
    carried = compare(*pair(student, fixed(1.0))).carried_over
    assert isinstance(carried, CarriedOver)
    assert (carried.held, carried.kept, carried.blocked) == (1, 0, {REASONS[blocker]: 1})
    text = " ".join(tables.kept(carried))
    assert "0 of 1 by its own certificates" in text and f"1 {REASONS[blocker]}" in text


def test_kept_samples_and_samples_that_the_student_gets_wrong() -> None:
    kept = compare(*pair(fixed(1.0), fixed(1.0))).carried_over
    assert kept is not None and (kept.direct, kept.through, kept.blocked) == (1, 0, {})
    wrong = compare(*pair(fixed(-12.0, bend=0.0).requires_grad_(False), fixed(1.0))).carried_over
    assert wrong is not None and wrong.held == 1
    lost = fixed(1.0)
    with torch.no_grad():
        lost[3].bias.copy_(torch.tensor([-5.0, 0.0]))
    misclassified = compare(*pair(lost, fixed(1.0))).carried_over
    assert misclassified is not None and misclassified.blocked == {MISCLASSIFIED: 1}
    nothing = compare(*pair(fixed(1.0), fixed(20.0))).carried_over
    assert nothing is not None and nothing.held == 0 and tables.kept(nothing) == []
    assert np.isnan(nothing.metrics()["kept"])
    missed = Requirement.parse("kept>=0.5").missed(compare(*pair(fixed(1.0), fixed(20.0))))
    assert missed == "not met: kept>=0.5 (it is not defined here)"


def test_run_passes_the_teacher_to_methods_about_both(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"""
out: {tmp_path / "run"}
data: {{name: digits}}
teacher: {{model: {{name: certkd:mlp, options: {{hidden: [8]}}}}, objective: {{kind: standard}}, epochs: 5}}
students:
  model: {{name: certkd:mlp, options: {{hidden: [8]}}}}
  epochs: 5
  objectives: {{kd: {{kind: kd}}}}
certify: {{eps: 0.01, methods: [crown, transfer, {{kind: match, time_limit: 1}}], limit: 30, options: {{steps: 5}},
  properties: [same-class, close=20]}}
"""
    )
    done = certkd("run", config)
    assert done.code == 0, done.err
    assert "kd: Including what carries over from the teacher, it keeps" in done.out
    assert "kd: The student gives the teacher's class everywhere in the ball for " in done.out
    summary = json.loads((tmp_path / "run" / "report" / "summary.json").read_text())
    assert summary["comparisons"]["kd"]["carried_over"]["samples"] == 30
    assert summary["comparisons"]["kd"]["match"]["samples"] == 30
    asked = [(one["kind"], one["tolerance"]) for one in summary["properties"]["kd"]]
    assert asked == [("same-class", 0), ("close", 20)]
    assert "kd: all properties on the ball of eps 0.01, 30 samples" in done.out
    assert "kd: The student's logits are within 20 of the teacher's everywhere in the ball for " in done.out
    further = read(tmp_path / "run" / "certificates" / "kd-close20.h5")
    assert set(further.methods) == {"match"} and further["match"].count(Status.CERTIFIED) == 30
    assert set(read(tmp_path / "run" / "certificates" / "teacher.h5").methods) == {"crown"}
