"""The notebook of the documentation: twelve cells without stored output, which run in order and write what they say."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT


@pytest.fixture
def notebook() -> dict[str, Any]:
    content: dict[str, Any] = json.loads((ROOT / "docs" / "paper.ipynb").read_text(encoding="utf-8"))
    return content


def test_it_is_a_notebook_of_twelve_cells_without_output(notebook: dict[str, Any]) -> None:
    cells = notebook["cells"]
    assert (notebook["nbformat"], len(cells)) == (4, 12)
    assert len({cell["id"] for cell in cells}) == 12 and {cell["cell_type"] for cell in cells} == {"markdown", "code"}
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
def test_its_cells_run_in_order(notebook: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            script = tmp_path / f"cell{number}.py"
            script.write_text(cell["source"], encoding="utf-8")
            names = runpy.run_path(str(script), names, "__main__")
            script.unlink()
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {"teacher.h5", "student.h5", "table.tex", "curves.pdf", "report.html"}
    assert "\\toprule" in (tmp_path / "table.tex").read_text(encoding="utf-8")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    assert names["comparison"].samples == 20 and names["found"].entries[1].label == "student"
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "My networks" in page and "data:image/png;base64," in page
