"""The page about extending certkd, followed word for word in a copy of the repository."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import REFERENCE, ROOT
from tests.test_docs import Block, blocks

PAGE = ROOT / "docs" / "extend.md"


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with the page's files, and its lines in the lists and tables."""
    place = tmp_path_factory.mktemp("extended")
    for name in ("certkd", "verifiers", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REFERENCE, place / REFERENCE.relative_to(ROOT))
    shutil.copy(ROOT / "pyproject.toml", place)
    for block in blocks(PAGE):
        if block.title:
            add(block, place / block.title)
    return place


def add(block: Block, file: Path) -> None:
    """Write a new file, or add the marked lines of each part between their neighbours."""
    if block.language == "python":
        assert not file.exists(), f"{file.name} is not a new file"
        file.write_text(block.text, encoding="utf-8")
        return
    text = file.read_text(encoding="utf-8")
    for part in block.text.split("@@\n"):
        lines = part.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        after = "".join(f"{line[1:]}\n" for line in lines)
        assert text.count(before) == 1, f"{block.title} has {text.count(before)} times:\n{before}"
        text = text.replace(before, after)
    file.write_text(text, encoding="utf-8")


def commands() -> list[list[str]]:
    found = [line for block in blocks(PAGE) if block.language == "sh" for line in block.commands if line]
    assert found
    return found


def test_the_lines_of_the_page_fit_the_code(extended: Path) -> None:
    assert (extended / "certkd" / "objectives" / "logits.py").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=shlex.join)
def test_a_command_of_the_page_passes(command: list[str], extended: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    start = ["-m", "pytest", "-n", "0"] if command[0] == "pytest" else ["-c", "from certkd.cli import main; main()"]
    run = subprocess.run(
        [sys.executable, *start, *command[1:]], cwd=extended, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"


@pytest.mark.slow
def test_the_python_of_the_page_runs(extended: Path) -> None:
    found = [block.text for block in blocks(PAGE) if block.language == "python" and not block.title]
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    assert found
    for text in found:
        command = [sys.executable, "-c", text]
        run = subprocess.run(command, cwd=extended, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
        assert run.stdout.endswith(" native\n"), run.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", ["ruff check --no-cache", "ruff format --check --no-cache", "mypy", "lint-imports"])
def test_the_additions_follow_the_rules(command: str, extended: Path) -> None:
    tool, *arguments = command.split()
    executable = shutil.which(tool, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert executable is not None, f"{tool} is not installed"
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    run = subprocess.run([executable, *arguments], cwd=extended, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, f"{run.stdout}\n{run.stderr}"
