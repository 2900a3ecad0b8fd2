"""A folder for each test of strange files."""

from pathlib import Path

import pytest

from tests.fuzz.trial import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """A folder that the test is in, and one that nothing may touch."""
    made = Sandbox(tmp_path)
    monkeypatch.chdir(made.folder)
    return made
