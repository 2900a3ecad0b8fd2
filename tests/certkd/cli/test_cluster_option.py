"""``--cluster`` of the commands: workers of Dask give the rows and verdicts of one process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certkd.networks.checkpoint import Checkpoint, save
from tests.certkd.cli.test_match_command import network
from tests.certkd.exchange.test_parallel import listed
from tests.certkd.exchange.test_solving import folder as solved  # noqa: F401 - a fixture
from tests.cli import certkd, refused, succeeds
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.runtime import staff

pytest.importorskip("distributed")
from distributed import Client, LocalCluster


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A worker in a thread of this process, which takes tasks as processes would: torch.export wants one at a time."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp") as own,
        Client(own, set_as_default=False) as made,
    ):
        made.wait_for_workers(1)
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
    x, y = np.random.default_rng(0).random((9, 4, 4)).astype("f4"), np.arange(9) % 3
    np.savez(tmp_path / "data.npz", x_test=x, y_test=y)
    for name, noise in (("student", 0.0), ("teacher", 0.1)):
        data = {"name": "data.npz", "seed": 0}
        save(Checkpoint(network((1, 4, 4), noise=noise), data=data), tmp_path / f"{name}.pt")
    return tmp_path


def assert_same_rows(one: Certificates, other: Certificates) -> None:
    assert list(one.methods) == list(other.methods)
    for name, rows in one.methods.items():
        for column, values in rows.columns.items():
            if "seconds" not in column:
                np.testing.assert_array_equal(values, other[name][column], f"{name}: {column}")


@pytest.mark.parametrize("methods", ["pgd,ibp", pytest.param("crown,complete", marks=pytest.mark.slow)])
def test_certify_has_the_rows_of_one_process(folder: Path, asked: list[str], methods: str) -> None:
    given = ("certify", folder / "student.pt", "--eps", "0.01", "--methods", methods, "--batch-size", "2")
    here, there = folder / "here.h5", folder / "there.h5"
    alone = succeeds(*given, "--option", "cross_check=0", "--out", here)
    shared = succeeds(*given, "--option", "cross_check=0", "--out", there, "--cluster", "tcp://somewhere:8786")
    assert asked == ["tcp://somewhere:8786"], "one connection for all methods"
    assert alone.count("\n") == shared.count("\n")
    assert_same_rows(read(here), read(there))


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
    assert_same_rows(read(out), read(whole))


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
