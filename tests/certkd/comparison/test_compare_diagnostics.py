"""Diagnostics in ``certify``, ``compare`` and ``run``: the same figures in memory, printed, and as JSON."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from certkd.comparison.compare import compare
from certkd.report import tables
from certkd.report.console import display, stdout
from tests.certifying import certify
from tests.cli import certkd
from tests.paths import REFERENCE
from tests.verifiers.methods.test_diagnostics import constant, network, scaled
from tests.zoo import images
from verifiers.certify.config import DEFAULT_METHODS
from verifiers.core.status import Status
from verifiers.core.table import Part
from verifiers.methods.diagnostics import Diagnostics
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.results.summaries.diagnostics import Diagnosis, diagnose

pytestmark = pytest.mark.slow


TEACHER, STUDENT = (REFERENCE / f"{name}.pt" for name in ("teacher", "kdiga"))
SETTINGS = ("--option", "steps=5", "--option", "restarts=2")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference pair on 40 samples at 0.1, by the command."""
    folder = tmp_path_factory.mktemp("diagnostics")
    paths = {"teacher": folder / "t.h5", "student": folder / "s.h5"}
    networks = ("--model", STUDENT, "--teacher", TEACHER, "--eps", "0.1", "--limit", "40")
    out = ("--teacher-out", paths["teacher"], "--out", paths["student"])
    done = certkd("certify", *networks, "--methods", "pgd,crown,diagnostics", *SETTINGS, *out)
    assert done.code == 0, done.err
    (folder / "printed").write_text(done.out)
    return {**paths, "printed": folder / "printed"}


def in_memory(student: torch.nn.Module, teacher: torch.nn.Module, y: torch.Tensor) -> tuple[Certificates, Certificates]:
    x = images((1, 4, 4), len(y))
    return (
        certify(teacher, x, y, eps=0.06, methods=["ibp"]),
        certify(student, x, y, eps=0.06, methods=["ibp", "diagnostics"], teacher=teacher),
    )


def printed(parts: Sequence[Part]) -> str:
    console = stdout()
    with console.capture() as seen:
        display(*parts, console=console)
    return seen.get()


def test_certify_prints_the_figures_of_the_rows(files: dict[str, Path]) -> None:
    rows, shown = read(files["student"])["diagnostics"], files["printed"].read_text()
    asked = rows["status"] == Status.NOT_CERTIFIED
    fooled = rows["transfers"][asked] >= 0
    assert fooled.sum() > 2 and asked.sum() > 30
    for what, value in (
        ("GD: gap of the cross-entropy's gradients, l2", f"{rows['gradient_gap'][asked].mean():.3g}"),
        ("the same in the dual norm of linf", f"{rows['gradient_gap_dual'][asked].mean():.3g}"),
        ("GC: cosine of the two", f"{rows['gradient_cosine'][asked].mean():.3g}"),
        ("PGD on the cross-entropy succeeds", f"{(rows['ce_attack'][asked] == 1).mean():.1%}"),
        ("PGD on the margin succeeds", f"{(rows['margin_attack'][asked] == 1).mean():.1%}"),
        ("the teacher falls for", f"{(rows['transfers'][asked][fooled] == 1).mean():.1%}"),
        ("the teacher's entropy at attacked points", f"{rows['teacher_entropy'][asked].mean():.3g}"),
        ("teacher right at x ", f"{(rows['teacher_right'][asked] == 1).mean():.1%}"),
        ("teacher right at x' ", f"{(rows['teacher_right_attacked'][asked] == 1).mean():.1%}"),
    ):
        assert any(what in line and value in line for line in shown.splitlines()), (what, value)
    assert "estimates" in shown and "warning" not in shown
    (contents,) = (line for line in shown.splitlines() if "diagnostics" in line and "estimate" in line)
    assert f"<= {(asked & ~(rows['margin'] < 0)).mean():.1%}" in contents


def test_the_comparison_is_a_document_like_others(files: dict[str, Path]) -> None:
    """It has the exit code, the values of the comparison, and the tables that are printed."""
    given = ("compare", files["teacher"], files["student"], "--json")
    document = json.loads(certkd(*given).out)
    assert document["exit_code"] == 0 and document["metrics"] and document["tables"][0]["rows"]
    failed = certkd(*given, "--require", "retention>1")
    assert failed.code == 1 and json.loads(failed.out)["exit_code"] == 1
    assert json.loads(failed.out)["metrics"] == document["metrics"]


def test_compare_repeats_them_and_json_holds_them(files: dict[str, Path]) -> None:
    plain = certkd("compare", files["teacher"], files["student"])
    assert plain.code == 0 and "GD: gap" in plain.out
    found = json.loads(certkd("compare", files["teacher"], files["student"], "--json").out)["diagnosis"]
    expected = diagnose(read(files["student"])["diagnostics"])
    assert expected is not None and set(found) == {field.name for field in fields(Diagnosis)}
    for name, value in found.items():
        wanted = getattr(expected, name)
        assert value == (list(wanted) if isinstance(wanted, tuple) else pytest.approx(wanted)), name


def test_other_files_have_no_diagnosis(files: dict[str, Path], tmp_path: Path) -> None:
    student = read(files["student"])
    other = tmp_path / "kd.h5"
    arguments = ("--eps", "0.1", "--limit", "40", "--methods", "pgd,crown", "--out", other)
    assert certkd("certify", "--model", REFERENCE / "kd.pt", *arguments, *SETTINGS).code == 0
    assert compare(read(other), student).diagnosis is None, "the rows are about another teacher"
    alone, x = network(1, 16, 4), images((1, 4, 4), 3)
    y = alone(x).argmax(1)
    both = alone, network(2, 16, 4)
    without, second = (certify(one, x, y, eps=0.1, methods=["ibp", "diagnostics"]) for one in both)
    assert compare(without, second).diagnosis is None, "there was no teacher"


def test_it_is_no_default_and_needs_a_teacher() -> None:
    assert Diagnostics().kind not in DEFAULT_METHODS
    done = certkd("certify", "--model", STUDENT, "--eps", "0.1", "--methods", "crown,diagnostics")
    assert done.code == 2 and "diagnostics needs --teacher" in done.err


def test_warnings_are_printed() -> None:
    honest = network(1, 16, 30, 2)
    right = honest(images((1, 4, 4), 60)).argmax(1)
    masked = in_memory(scaled(honest, 1e6), honest, right)
    diagnosis = compare(*masked).diagnosis
    assert diagnosis is not None and diagnosis.transfer == 1.0
    collapsed = in_memory(constant(), network(1, 16, 30, 10), torch.arange(60) % 10)
    for pair, words in ((masked, "gradient masking: the attack"), (collapsed, "collapse: clean accuracy is 10.0%")):
        lines = [part for part in tables.pair_summaries(*pair) if isinstance(part, str)]
        assert sum(line.startswith(f"warning: student: {words}") for line in lines) == 1
    fair = in_memory(network(2, 16, 30, 2), honest, right)
    assert not any("warning" in str(part) for part in tables.pair_summaries(*fair))
    assert tables.pair_summaries(fair[1], fair[1]) == [], "the rows are about another teacher"


def test_students_stand_side_by_side() -> None:
    honest = network(1, 16, 30, 2)
    right = honest(images((1, 4, 4), 60)).argmax(1)
    students = {"copy": honest, "masked": scaled(honest, 1e6)}
    pairs = {name: in_memory(model, honest, right) for name, model in students.items()}
    networks = {"teacher": pairs["copy"][0], **{name: pair[1] for name, pair in pairs.items()}}
    shown = printed(tables.experiment(networks, {name: compare(*pair) for name, pair in pairs.items()}))
    assert "warning: masked: gradient masking" in shown and "warning: copy" not in shown
    (line,) = (line for line in shown.splitlines() if "GC: cosine" in line)
    assert [cell.strip() for cell in line.strip("│ \n").split("│")[1:]] == ["1", "0"]
    assert "GC: cosine" not in printed(tables.experiment({"teacher": networks["teacher"]}, {}))


def test_run_prints_them_and_its_summary_holds_them(tmp_path: Path) -> None:
    changes = {
        "teacher.epochs": 1,
        "teacher.objective.steps": 1,
        "students.epochs": 1,
        "students.objectives": "{standard: {kind: standard}, kd: {kind: kd}}",
        "certify.methods": "[ibp, diagnostics]",
        "certify.options": "{steps: 2, restarts: 1}",
        "certify.limit": 30,
        "out": tmp_path / "out",
    }
    settings = [text for name, value in changes.items() for text in ("--set", f"{name}={value}")]
    done = certkd("run", REFERENCE.parents[2] / "configs" / "digits.yaml", *settings)
    assert "GC: cosine" in done.out, done.err
    summary = json.loads((tmp_path / "out" / "report" / "summary.json").read_text())
    for name in ("standard", "kd"):
        rows = read(tmp_path / "out" / "certificates" / f"{name}.h5")["diagnostics"]
        found = summary["comparisons"][name]["diagnosis"]
        assert found["gradient_gap"] == pytest.approx(np.nanmean(rows["gradient_gap"])) and found["samples"] > 0
