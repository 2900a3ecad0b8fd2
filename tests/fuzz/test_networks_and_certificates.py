"""Damaged certificate files, verified and resumed with the network that they are about."""

import shutil
from pathlib import Path

import pytest

from tests.cli import succeeds
from tests.fuzz.mutate import mutants
from tests.fuzz.test_certificates import STRUCTURE
from tests.fuzz.trial import Sandbox
from tests.paths import REFERENCE

NETWORK = REFERENCE / "kd.pt"
CERTIFY = ("certify", "--model", NETWORK, "--eps", "0.05", "--limit", "4", "--methods", "pgd,ibp", "--engine", "native")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("honest") / "a.h5"
    succeeds(*CERTIFY, "--out", path)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["verify", "certify", "export"])
def test_damaged_files_with_their_network(sandbox: Sandbox, valid: bytes, command: str) -> None:
    commands = {
        "verify": ("verify", "a.h5", "--model", NETWORK, "--sample", "1"),
        "certify": (*CERTIFY, "--out", "a.h5"),
        "export": ("export", "a.h5", "--model", NETWORK, "--out", "o"),
    }
    for name, content in mutants([valid], 60, len(command), STRUCTURE):
        Path("a.h5").write_bytes(content)
        sandbox.command(f"{command}, {name}", *commands[command])
        shutil.rmtree("o", ignore_errors=True)
