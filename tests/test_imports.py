"""Modules that read, compare and list stay light: importing them loads neither torch, scipy nor matplotlib."""

import subprocess
import sys

import pytest

from tests.paths import ROOT

HEAVY = ("matplotlib", "scipy", "sklearn", "timm", "torch", "torchvision")
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
