"""``--workers`` of the commands: the same table, the same rows, and the option where it is."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from tests.certkd.cli.test_match_command import write_pair
from tests.cli import certkd, refused, succeeds
from tests.pools import Inline
from verifiers.results.reader import read
from verifiers.runtime import staff


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student, a teacher and their data; pools without processes."""
    monkeypatch.setattr(staff, "Processes", lambda job, count, _: nullcontext(Inline(job, count, order="last")))
    monkeypatch.chdir(tmp_path)
    return write_pair(tmp_path, images=6)


def test_certify_prints_the_same_table(folder: Path) -> None:
    given = (
        "certify",
        folder / "student.pt",
        "--eps",
        "0.01",
        "--methods",
        "pgd",
        "--batch-size",
        "2",
        "--device",
        "cpu",
    )
    said = [
        succeeds(*given, "--out", folder / f"{count}.h5", "--workers", count).replace(f"{count}.h5", "out.h5")
        for count in ("1", "2")
    ]
    assert said[0] == said[1]
    one, two = (read(folder / f"{count}.h5")["pgd"] for count in ("1", "2"))
    np.testing.assert_array_equal(one["radius"], two["radius"])
    np.testing.assert_array_equal(one["margin"], two["margin"])


@pytest.mark.slow
def test_match_and_verify_share_too(folder: Path) -> None:
    pair = ("--teacher", folder / "teacher.pt", "--device", "cpu")
    out = folder / "match.h5"
    given = ("match", folder / "student.pt", *pair, "--eps", "0.01", "--time-limit", "5", "--batch-size", "2")
    assert "same-class" in succeeds(*given, "--out", out, "--workers", "3")
    assert certkd("verify", out, folder / "student.pt", *pair, "--workers", "2").code == 0


@pytest.mark.parametrize("command", ["certify", "match", "transfer", "verify", "solve"])
def test_every_command_that_computes_much_has_the_option(command: str) -> None:
    said = succeeds(command, "--help")
    assert "--workers" in said and "--cluster" in said


def test_a_number_of_workers_that_is_none_is_refused(folder: Path) -> None:
    said = refused("certify", folder / "student.pt", "--eps", "0.01", "--workers", "two")
    assert said == "certkd: --workers must be a whole number of at least 1 and at most 1024, got 'two'\n"


CLUSTERS = [
    ("lokal", "cluster must be local, local:4, tcp://host:8786 or slurm:FILE.yaml, got 'lokal'"),
    ("local:0", "cluster must be local, local:4, tcp://host:8786 or slurm:FILE.yaml, got 'local:0'"),
    ("tcp:host", "cluster must be local, local:4, tcp://host:8786 or slurm:FILE.yaml, got 'tcp:host'"),
]


@pytest.mark.parametrize(("where", "said"), CLUSTERS)
def test_a_cluster_that_is_none_is_refused(folder: Path, where: str, said: str) -> None:
    assert said in refused("certify", folder / "student.pt", "--eps", "0.01", "--cluster", where)


def test_workers_and_a_cluster_exclude_each_other(folder: Path) -> None:
    said = refused("certify", folder / "student.pt", "--eps", "0.01", "--cluster", "local", "--workers", "2")
    assert "--workers 2 and --cluster local exclude each other: give one" in said
