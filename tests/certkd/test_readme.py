"""The Python examples of the README run as they stand."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from tests.paths import ROOT

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)


def test_the_readme_has_a_python_example() -> None:
    assert BLOCKS and all(block.strip() for block in BLOCKS), "README.md shows no Python"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:30])
def test_a_python_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny networks: more threads only wait for each other
    before = sorted(path.name for path in ROOT.iterdir())
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    assert sorted(path.name for path in ROOT.iterdir()) == before, "an example leaves files in the repository"
