"""``--cluster`` of the commands: workers of Dask give the rows and verdicts of one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.certkd.cli.test_match_command import write_pair
from tests.certkd.exchange.test_parallel import listed
from tests.certkd.exchange.test_solving import folder as solved  # noqa: F401 - a fixture
from tests.cli import certkd, refused, succeeds
from tests.verifiers.certify.test_workers import assert_equal
from verifiers.results.reader import read
from verifiers.runtime import staff

pytest.importorskip("distributed")
from distributed import Client

from tests.clusters import in_threads


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker: torch.export wants one thread at a time."""
    with in_threads(1) as made:
        yield made


@pytest.fixture
def asked(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give every command these workers; return the clusters that were asked for."""
    seen: list[str] = []

    @contextmanager
    def connected(cluster: str) -> Iterator[Client]:
        seen.append(cluster)
        yield client

    monkeypatch.setattr(staff, "_client", connected)
    return seen


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A student, a teacher and their data."""
    monkeypatch.chdir(tmp_path)
    return write_pair(tmp_path, images=9)


@pytest.mark.parametrize("methods", ["pgd,ibp", pytest.param("crown,complete", marks=pytest.mark.slow)])
def test_certify_has_the_rows_of_one_process(folder: Path, asked: list[str], methods: str) -> None:
    given = ("certify", folder / "student.pt", "--eps", "0.01", "--methods", methods, "--batch-size", "2")
    here, there = folder / "here.h5", folder / "there.h5"
    alone = succeeds(*given, "--option", "cross_check=0", "--out", here)
    shared = succeeds(*given, "--option", "cross_check=0", "--out", there, "--cluster", "tcp://somewhere:8786")
    assert asked == ["tcp://somewhere:8786"], "one connection for all methods"
    assert alone.count("\n") == shared.count("\n")
    assert_equal(read(here), read(there))


def test_a_file_that_a_cluster_began_is_finished_by_one_process(
    folder: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster is lost after the first part of an answer."""
    from verifiers.runtime.cluster import Cluster

    receive, parts = Cluster.receive, list[Any]()

    def once(self: Cluster) -> Any:
        parts.append(receive(self))
        if len(parts) > 2:
            raise KeyboardInterrupt
        return parts[-1]

    monkeypatch.setattr(Cluster, "receive", once)
    given = ("certify", folder / "student.pt", "--eps", "0.01", "--methods", "pgd", "--batch-size", "2")
    out, whole = folder / "out.h5", folder / "whole.h5"
    assert certkd(*given, "--out", out, "--cluster", "local:3").code == 130
    assert 0 < int((read(out)["pgd"]["status"] != 0).sum()) < 9
    succeeds(*given, "--out", out)
    succeeds(*given, "--out", whole)
    assert asked == ["local:3"]
    assert_equal(read(out), read(whole))


@pytest.mark.slow
def test_match_and_verify_share_their_work(folder: Path, asked: list[str]) -> None:
    pair, out = ("--teacher", folder / "teacher.pt"), folder / "match.h5"
    given = ("match", folder / "student.pt", *pair, "--eps", "0.01", "--time-limit", "5", "--batch-size", "2")
    assert "same-class" in succeeds(*given, "--out", out, "--cluster", "local")
    assert certkd("verify", out, folder / "student.pt", *pair, "--cluster", "local").code == 0
    assert set(asked) == {"local"}


@pytest.mark.slow
def test_solve_has_the_results_of_one_process(solved: Path, asked: list[str]) -> None:  # noqa: F811
    said = succeeds("solve", listed(solved), "--out", solved / "shared", "--cluster", "local:3")
    assert said.startswith("3 instances in") and "1 sat, 1 unsat, 1 unknown" in said and asked == ["local:3"]
    lines = (solved / "shared" / "results.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["sat.vnnlib", "wrong.vnnlib", "unsat.vnnlib"], lines


def test_nobody_is_asked_for_one_batch(folder: Path, asked: list[str]) -> None:
    succeeds("certify", folder / "student.pt", "--eps", "0.01", "--methods", "pgd", "--cluster", "local")
    assert not asked


def test_a_file_of_slurm_that_is_missing_is_said(folder: Path) -> None:
    said = refused("certify", folder / "student.pt", "--eps", "0.01", "--cluster", "slurm:absent.yaml")
    assert said == "certkd: there is no file 'absent.yaml': slurm:FILE.yaml has cores, memory, queue and jobs\n"
