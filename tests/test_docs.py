"""Every Python block and every command of the README and the documentation runs as it stands.

A block after ``<!-- slow -->`` runs with the slow tests, one after ``<!-- skip: WHY -->`` does not run.
"""

import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli import succeeds
from tests.marks import only
from tests.paths import REFERENCE, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r'^(?:<!-- (slow|skip: [^\n]+) -->\n)?```(\w+)(?: title="([^"\n]+)")?\n(.*?)^```$', re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: ``mark`` is the comment before it, ``title`` the file that it shows."""

    mark: str
    language: str
    title: str
    text: str

    @property
    def commands(self) -> Iterator[list[str]]:
        """The arguments of each command, without ``uv run``."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            yield words[2:] if words[:2] == ["uv", "run"] else words


def blocks(page: Path) -> list[Block]:
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [Block(mark, language, title, text) for mark, language, title, text in found]


def runs(block: Block, *, slow: bool) -> bool:
    return (
        block.language in ("sh", "python")
        and not block.title
        and not block.mark.startswith("skip")
        and (slow or block.mark != "slow")
    )


QUICK = [page for page in PAGES if any(runs(block, slow=False) for block in blocks(page))]
SLOW = [page for page in PAGES if any(block.mark == "slow" for block in blocks(page))]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's networks and configurations, to run in."""
    shutil.copytree(REFERENCE, tmp_path / REFERENCE.relative_to(ROOT))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_page(page: Path, place: Path, *, slow: bool) -> None:
    """Run the blocks of a page in their order; they share a folder, and Python blocks their names."""
    names: dict[str, object] = {}
    for number, block in enumerate(blocks(page)):
        if block.title.endswith(".csv"):
            (place / block.title).write_text(block.text, encoding="utf-8")
        if not runs(block, slow=slow):
            continue
        if block.language == "python":
            script = place / f"{page.stem}-block-{number}.py"
            script.write_text(block.text, encoding="utf-8")
            names = runpy.run_path(str(script), names, "__main__")
            continue
        for words in block.commands:
            if words:
                assert words[0] == "certkd", f"{page.name}: {words} does not run certkd: mark the block"
                succeeds(*words[1:])


#: Pages of which even the quick blocks take over three seconds.
LONG = ("README", "certify")
SHORT = [page for page in QUICK if page.stem not in LONG]


@pytest.mark.parametrize("page", only(SHORT, QUICK), ids=lambda page: page.stem)
def test_a_page_runs(page: Path, place: Path) -> None:
    run_page(page, place, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW, ids=lambda page: page.stem)
def test_a_whole_page_runs(page: Path, place: Path) -> None:
    run_page(page, place, slow=True)


def test_blocks_that_do_not_run_say_why() -> None:
    skipped = {f"{page.stem}: {block.mark}" for page in PAGES for block in blocks(page) if block.mark[:4] == "skip"}
    reasons = ("sets up", "needs", "minutes", "long")
    assert skipped and all(any(reason in text for reason in reasons) for text in skipped), sorted(skipped)


def test_every_fenced_block_is_read() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert len(re.findall(r"^```\w", text, re.M)) == len(blocks(page)), page.name
        assert len(re.findall(r"^<!-- (?:slow|skip)", text, re.M)) == sum(bool(block.mark) for block in blocks(page))
