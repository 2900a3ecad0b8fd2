"""The names that users import: complete, lazy, typed, and safe from a namesake."""

import ast
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import certkd
import verifiers
from tests.paths import ROOT

PACKAGES = pytest.mark.parametrize("package", [certkd, verifiers], ids=["certkd", "verifiers"])

SCRIPT = """
import torch

import certkd

network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
teacher = certkd.load_checkpoint("teacher.pt").model
images, labels = torch.rand(20, 1, 8, 8), torch.zeros(20, dtype=torch.long)
config = certkd.TrainConfig(objective=certkd.Kdiga(target="projection", lambda_iga=0.5), epochs=2)
result = certkd.train(network, (images, labels), config, teacher=teacher)
best: int = result.best_epoch
question = certkd.CertifyConfig(eps="2/255", methods=("pgd", "crown"), options={"steps": 10})
certificates = certkd.certify(network, (images, labels), question)
print(certkd.compare(certificates, certificates).retention)


def radii(path: str) -> list[float]:
    certificates = certkd.read_certificates(path)
    return [float(radius) for radius in certificates["crown"]["radius"]]


try:
    print(best, radii("student.h5"))
except certkd.InputError as error:
    print(error)
"""


def _run(arguments: list[str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder, with the repository on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, env=environment, check=False
    )


@PACKAGES
def test_all_lists_every_typed_name_once(package: object) -> None:
    source = Path(str(package.__file__)).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    block = next(node for node in ast.parse(source).body if isinstance(node, ast.If))
    typed = [
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    assert sorted(typed) == package.__all__  # type: ignore[attr-defined]


@PACKAGES
def test_every_name_is_documented_and_resolves(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name).__doc__, f"{name} has no docstring"
    assert set(package.__all__) <= set(dir(package))  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        package.nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        package.Nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_every_objective_is_a_public_name() -> None:
    objectives = importlib.import_module("certkd.objectives").OBJECTIVES
    assert all(getattr(certkd, objective.__name__) is objective for objective in objectives)


def test_a_listed_objective_is_offered_without_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certkd.catalogue.class_names", lambda: ("Kdiga", "Mine"))
    assert "Mine" in dir(certkd)


MISTAKES: list[tuple[str, dict[str, object], str]] = [
    ("CertifyConfig", {"eps": "0"}, "eps must be positive and finite, got '0': write it like 8/255 or 0.03"),
    ("CertifyConfig", {}, "the setting eps is missing: give one, like eps=8/255"),
    ("CertifyConfig", {"eps": 0.1, "norm": "l3"}, "norm must be 'linf', 'l2' or 'l1', got 'l3'"),
    ("CertifyConfig", {"eps": 0.1, "method": "crown"}, "unknown setting 'method'. Did you mean 'methods'?"),
    ("CertifyConfig", {"eps": 0.1, "methods": "pgd,crwn"}, "unknown method 'crwn'. Did you mean 'crown'?"),
    ("CertifyConfig", {"eps": 0.1, "options": {"steps": 0}}, "method pgd: steps must be at least 1, got 0"),
    ("TrainConfig", {}, "the setting objective is missing"),
    ("TrainConfig", {"objective": "kdiga"}, "objective must be settings by name, like {kind: kdiga}, got 'kdiga'"),
    (
        "TrainConfig",
        {"objective": {"kind": "kd", "temperature": 0}},
        "objective.temperature must be greater than 0",
    ),
    (
        "TrainConfig",
        {"objective": {"kind": "kd"}, "epochs": "many"},
        "epochs: 'many' is not a whole number",
    ),
    ("OptimizerConfig", {"rate": -1}, "rate must be greater than 0, got -1"),
    ("OptimizerConfig", {"kind": "lions"}, "kind: unknown optimizer 'lions'. Did you mean 'lion'?"),
    ("SelectionConfig", {"metric": "pgd"}, "selection by pgd needs an eps"),
    ("Kdiga", {"temperature": 0}, "temperature must be greater than 0, got 0"),
    ("Kdiga", {"target": "logits"}, "target must be 'ce', 'ce_tempered', 'margin', 'projection', 'jacobian' or"),
    ("Adversarial", {}, "the setting eps is missing: give one, like eps=8/255"),
]


@pytest.mark.parametrize(("name", "given", "line"), MISTAKES, ids=[line for *_, line in MISTAKES])
def test_a_constructor_refuses_a_mistake_with_one_line(name: str, given: dict[str, object], line: str) -> None:
    with pytest.raises(certkd.InputError) as caught:
        getattr(certkd, name)(**given)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value), caught.value


def test_importing_the_packages_imports_nothing_heavy() -> None:
    code = (
        "import certkd, verifiers, sys; print([m for m in ('torch', 'numpy', 'pydantic', 'h5py') if m in sys.modules])"
    )
    assert _run(["-c", code]).stdout.strip() == "[]"


def test_a_namesake_of_verifiers_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "verifiers").mkdir()
    (tmp_path / "verifiers" / "__init__.py").write_text("raise SystemExit('the namesake was run')")
    run = _run(["-c", "import certkd"], tmp_path)
    line = run.stderr.splitlines()[-1]
    assert line.startswith("ImportError: certkd's package 'verifiers' is hidden by another package of that name")
    assert str(tmp_path / "verifiers" / "__init__.py") in line
    assert run.returncode == 1


@pytest.mark.slow
def test_mypy_sees_the_real_types(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + '\ncertkd.train(network, "not data", epochs="many")\n')
    line = len(script.read_text().splitlines())
    run = _run(["-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(tmp_path / "cache"), str(script)])
    problems = run.stdout.splitlines()
    assert problems, run.stderr
    outside = [problem for problem in problems if "error:" in problem and f"script.py:{line}: " not in problem]
    assert not outside, outside
    assert any('argument "epochs"' in problem for problem in problems), problems
    assert any("script.py" in problem and "arg-type" in problem for problem in problems), problems
