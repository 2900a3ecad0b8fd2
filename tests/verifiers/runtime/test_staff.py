"""Who does the work, by what the user writes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pools import Inline, Squares
from tests.verifiers.runtime.test_pool import Sums, assert_squares
from verifiers.core.errors import InputError
from verifiers.runtime import code, staff
from verifiers.runtime.pool import spread
from verifiers.runtime.staff import Staff


@pytest.mark.parametrize("where", ["local", "local:3", "tcp://host:8786", "tls://host:1", f"slurm:{__file__}"])
def test_forms_of_clusters(where: str) -> None:
    assert not Staff(cluster=where).alone and Staff().alone and not Staff(2).alone


@pytest.mark.parametrize(
    "where", ["", "local:", "local:0", "local:x", "local:1025", "tcp:host", "slurm:", "http://a:1"]
)
def test_other_texts_are_refused(where: str) -> None:
    if where == "local:":
        assert not Staff(cluster=where).alone, "a colon alone names no number"
        return
    with pytest.raises(InputError, match=r"cluster must be local, local:4, tcp://host:8786 or slurm:FILE\.yaml, got"):
        Staff(cluster=where)


def test_processes_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    @contextmanager
    def processes(job: Any, workers: int, threads: int) -> Iterator[Inline]:
        given.extend([workers, threads])
        yield Inline(job, workers)

    monkeypatch.setattr(staff, "Processes", processes)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    with Staff(3).pool(lambda threads: given.append(threads) or Squares()) as pool:  # type: ignore[func-returns-value]
        work = Sums()
        spread(pool, work, np.arange(5), 2)
        assert_squares(work, range(5))
    assert given == [2, 3, 2]


def test_a_missing_dask_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"--cluster local needs Dask: install certkd\[cluster\], or use --workers N"):
        Staff(cluster="local").pool(lambda threads: Squares()).__enter__()


def opened(where: str) -> None:
    with Staff(cluster=where).pool(lambda threads: Squares()) as pool:
        work = Sums()
        spread(pool, work, np.arange(5), 2)
        assert_squares(work, range(5))


def test_a_file_describes_the_jobs_of_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import dask_jobqueue
    from distributed import LocalCluster

    given: dict[str, Any] = {}

    class Slurm(LocalCluster):
        def __init__(self, cores: int, queue: str) -> None:
            given.update(cores=cores, queue=queue)
            super().__init__(n_workers=0, threads_per_worker=cores, processes=False, dashboard_address=":0")

        def scale(self, n: int = 0, jobs: int = 0) -> Any:
            given["jobs"] = max(jobs, given.get("jobs", 0))  # 0 at the end
            return super().scale(jobs)

    monkeypatch.setattr(dask_jobqueue, "SLURMCluster", Slurm)
    place = tmp_path / "slurm.yaml"
    place.write_text("jobs: 2\ncores: 1\nqueue: long\n")
    opened(f"slurm:{place}")
    assert given == {"cores": 1, "queue": "long", "jobs": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, r"there is no file '.*': slurm:FILE\.yaml has cores, memory, queue and jobs"),
        ("jobs: [", "does not describe a SLURMCluster of Dask"),
        ("- 1\n", "does not describe a SLURMCluster of Dask"),
        ("jobs: many\ncores: 1\nmemory: 1GB\n", "does not describe a SLURMCluster of Dask"),
        ("cores: 1\nmemory: 1GB\nwrong_key: 2\n", r"does not describe a SLURMCluster of Dask \(.*wrong_key"),
    ],
)
def test_a_file_that_describes_no_cluster_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    place = tmp_path / "slurm.yaml"
    if text is not None:
        place.write_text(text)
    with pytest.raises(InputError, match=said):
        opened(f"slurm:{place}")


def test_the_code_of_a_process_is_its_versions_and_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert code.code_of() == code.code_of() and f"torch {torch.__version__}" in code.code_of()
    before = code._source()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(code, "PACKAGES", ("package", "absent_package"))
    one = code._source()
    (tmp_path / "package" / "__init__.py").write_text("a = 2\n")
    assert len({before, one, code._source()}) == 3
