"""The Python examples of the README run as they stand."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)


def test_the_readme_has_a_python_example() -> None:
    assert BLOCKS and all(block.strip() for block in BLOCKS), "README.md shows no Python"


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0][:30])
def test_a_python_example_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "example.py"
    script.write_text(block, encoding="utf-8")
    monkeypatch.chdir(ROOT)
    before = sorted(path.name for path in ROOT.iterdir())
    runpy.run_path(str(script), run_name="__main__")
    assert sorted(path.name for path in ROOT.iterdir()) == before, "an example leaves files in the repository"
