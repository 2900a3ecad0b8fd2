"""Modules that read, compare and list stay light: importing them loads neither torch, scipy nor matplotlib."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REFERENCE, ROOT

HEAVY = ("jaxtyping", "matplotlib", "scipy", "sklearn", "timm", "torch", "torchvision")
LIGHT = (
    "certkd.cli",
    "certkd.comparison.compare",
    "certkd.report.console",
    "certkd.report.plots",
    "verifiers.methods.registry",
    "verifiers.results.reader",
)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_certifying_a_plain_network_does_without_the_compiler(tmp_path: Path) -> None:
    given = ["certify", "--model", str(REFERENCE / "kdiga.pt"), "--eps", "0.05", "--limit", "2"]
    given += ["--methods", "crown", "--out", str(tmp_path / "a.h5")]
    code = f"import sys, certkd.cli; certkd.cli.cli({given}, standalone_mode=False)"
    code += "; print([name for name in ('torch._dynamo', 'triton') if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout.splitlines()[-1] == "[]", run.stderr
