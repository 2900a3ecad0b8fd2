"""Blocks of rows reach Dask workers and come back, whatever happens to workers and scheduler."""

import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pools import Lambdas, Squares, Unopened
from tests.verifiers.runtime.test_pool import Sums, assert_squares
from verifiers.core.errors import InputError
from verifiers.runtime.pool import End, Part, Pool, Send, spread
from verifiers.runtime.staff import Staff, _client

pytest.importorskip("distributed")
from distributed import Client
from distributed.comm.core import CommClosedError

from tests.clusters import in_threads
from verifiers.runtime import cluster, tasks
from verifiers.runtime.cluster import AGAIN, Cluster, Desk


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two workers in threads of this process."""
    with in_threads(2) as made:
        yield made


def soon(true: Callable[[], bool]) -> bool:
    """Wait until something is true."""
    return any(true() or time.sleep(0.05) for _ in range(600))


def test_blocks_come_back_in_parts(client: Client) -> None:
    with Cluster(Squares(full=(17,)), client) as pool:
        assert isinstance(pool, Pool) and pool.free == 2
        work = Sums()
        spread(pool, work, np.arange(18), 6)
        assert_squares(work, range(18), but={17})
        assert work.lost[17].memory and not work.lost[17].died
        again = Sums()
        spread(pool, again, np.arange(20, 40), 7)
        assert_squares(again, range(20, 40))
    for kind, held in (("queues", "queues"), ("events", "_events")):
        left = lambda dask_scheduler, kind=kind, held=held: len(getattr(dask_scheduler.extensions[kind], held))  # noqa: E731
        assert soon(lambda left=left: client.run_on_scheduler(left) == 0), f"{kind} stay at the scheduler"


def test_blocks_grow_with_what_a_batch_takes_but_not_their_batches(client: Client) -> None:
    with Cluster(Squares(), client) as pool:
        work = Sums()
        spread(pool, work, np.arange(300), 3)
        assert_squares(work, range(300))
        assert max(map(len, work.tasks)) > 3 and all(len(rows) % 3 == 0 for rows in work.tasks)
        assert max(map(len, work.tasks)) <= 150, "one worker has more than its share"


def test_an_error_is_raised_with_the_lines_of_the_worker(client: Client) -> None:
    with (
        Cluster(Squares(broken=(19,)), client) as pool,
        pytest.raises(ZeroDivisionError, match="19 is broken") as caught,
    ):
        spread(pool, Sums(), np.arange(19, 20), 1)
    assert any("in answer" in note for note in caught.value.__notes__), caught.value.__notes__


def test_a_job_that_cannot_be_sent_or_opened_is_refused(client: Client) -> None:
    with pytest.raises(InputError, match=r"cannot be sent to other processes \(.*\): use one"):
        Cluster(Lambdas(), client)  # type: ignore[arg-type]
    with Cluster(Unopened(), client) as pool, pytest.raises(LookupError, match="no such thing"):
        spread(pool, Sums(), np.arange(2), 1)


def test_workers_of_other_code_are_refused(client: Client) -> None:
    with Cluster(Squares(), client) as pool:
        pool._desk = Desk(pool._desk._job, "Python 2.7, certkd 0123abcd")
        client.unregister_worker_plugin(pool._name)
        pool._begin()
        with pytest.raises(InputError, match=r"has Python 3.*, but this process Python 2\.7, certkd 0123abcd: install"):
            spread(pool, Sums(), np.arange(2), 1)


@dataclass(frozen=True)
class Endless:
    """A job whose tasks send parts until they are stopped, and leave a file then."""

    ended: str

    def open(self) -> Callable[[Any, Send], None]:
        return self.answer

    def answer(self, numbers: list[int], send: Send) -> None:
        try:
            while True:
                send((numbers[0], numbers[0] ** 2))
        finally:
            Path(self.ended).touch()


def test_a_closed_pool_stops_its_workers(client: Client, tmp_path: Path) -> None:
    with Cluster(Endless(str(tmp_path / "ended")), client) as pool:
        pool.submit([3])
        assert pool.receive() == Part(0, (3, 9))
    assert soon((tmp_path / "ended").exists), "the task goes on"


def quiet(client: Client) -> Cluster:
    """A pool with one open task that says nothing by itself."""
    pool = Cluster(Squares(), client)
    pool._tasks[0] = cluster._Task(client.submit(int, pure=False))
    pool._tasks[0].future.result()
    return pool


def test_a_task_that_another_worker_began_is_lost(client: Client) -> None:
    with quiet(client) as pool:
        pool._hear(0, 0, tasks.READY, pickle.dumps("tcp://a:1"))
        pool._hear(0, 0, AGAIN, pickle.dumps(""))
        assert pool.receive() == End(0, "its worker tcp://a:1 ended", died=True)
        pool._hear(0, 1, tasks.PART, pickle.dumps(5))
        assert not pool._events and not pool._tasks, "what comes late is of nobody"


def test_a_worker_that_dask_ends_for_its_memory_is_told(client: Client) -> None:
    with quiet(client) as pool:
        pool._hear(0, 0, tasks.READY, pickle.dumps("tcp://a:1"))
        pool._full.add("tcp://a:1")
        pool._lose(0)
        said = "its worker tcp://a:1 was ended, as Dask does when memory runs out"
        assert pool.receive() == End(0, said, memory=True, died=True)


def test_an_answer_without_one_of_its_parts_is_lost(client: Client) -> None:
    with quiet(client) as pool:
        pool._hear(0, 0, tasks.READY, pickle.dumps("tcp://a:1"))
        pool._hear(0, 2, tasks.DONE, pickle.dumps(""))
        assert pool.receive() == End(0, "a part of its answer was lost", died=True)


def test_an_answer_without_its_end_is_lost(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "PATIENCE", 0.01)
    with quiet(client) as pool:
        assert pool.receive() == End(0, "the end of its answer was lost", died=True)


def test_a_reader_that_ends_is_begun_again(client: Client) -> None:
    with quiet(client) as pool:
        pool._inbox.put(pool._queue)
        assert pool.receive() == End(0, "the scheduler was lost", died=True)
        work = Sums()
        spread(pool, work, np.arange(6), 3)
        assert_squares(work, range(6))


def test_a_task_that_fails_says_why_and_is_tried_again(client: Client) -> None:
    """A message that cannot be put is a lost task, not an error of the command."""
    with quiet(client) as pool:
        pool._fail(0, cluster.Untold("Stream is closed"))
        assert pool.receive() == End(0, "it failed at its worker (Stream is closed)", died=True)


def test_a_worker_that_joins_gets_work(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with quiet(client) as pool:
        pool._workers = 1
        assert pool.free == 0
        pool._look()
        assert pool.free == 1 and pool.receive() == Part(cluster.NOBODY, None)


def test_a_task_that_the_scheduler_forgets_is_lost_and_given_again(client: Client) -> None:
    with quiet(client) as pool:
        client.cancel([pool._tasks[0].future])
        while pool._tasks and pool._tasks[0].future.status != "cancelled":
            time.sleep(0.01)
        assert pool.receive() == End(0, "the scheduler was lost", died=True)
        work = Sums()
        spread(pool, work, np.arange(6), 3)
        assert_squares(work, range(6))


# Processes ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_killed_worker_loses_nothing_and_a_killer_ends_alone(tmp_path: Path) -> None:
    """Number 11 kills a worker once; number 13 kills each."""
    job = Squares(killers=(11,), once=str(tmp_path / "killed"))
    with Staff(1, "local:2").pool(lambda threads: job) as pool:
        work = Sums()
        spread(pool, work, np.arange(12), 6)
        assert_squares(work, range(12))
        assert (tmp_path / "killed").exists()
    with Staff(1, "local:2").pool(lambda threads: Squares(killers=(13,))) as pool:
        work = Sums()
        spread(pool, work, np.arange(12, 15), 3)
        assert_squares(work, range(12, 15), but={13})
        assert work.lost[13].died and "ended" in work.lost[13].lost


def started(*command: str, line: str) -> subprocess.Popen[str]:
    """Start a command of Dask, and wait until it writes a line with some text."""
    code = f"from distributed.cli.dask_{command[0]} import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command[1:]], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    while line not in (said := process.stderr.readline()):
        assert said, f"dask {command[0]} ended"
    return process


@pytest.mark.slow
def test_a_scheduler_that_is_lost_and_comes_back_gets_its_work_again(tmp_path: Path) -> None:
    place = ("--host", "127.0.0.1", "--port", "28786", "--no-dashboard")
    scheduler = started("scheduler", *place, line="Scheduler at")
    worker = started("worker", "tcp://127.0.0.1:28786", "--no-dashboard", "--nthreads", "1", line="Registered to")
    try:
        with Staff(1, "tcp://127.0.0.1:28786").pool(lambda threads: Squares()) as pool:
            work = Sums()
            spread(pool, work, np.arange(6), 2)
            assert_squares(work, range(6))
            os.kill(scheduler.pid, signal.SIGKILL)
            scheduler.wait()
            worker.kill()
            scheduler = started("scheduler", *place, line="Scheduler at")
            worker = started(
                "worker", "tcp://127.0.0.1:28786", "--no-dashboard", "--nthreads", "1", line="Registered to"
            )
            again = Sums()
            spread(pool, again, np.arange(6), 2)
            assert_squares(again, range(6))
    finally:
        worker.kill()
        scheduler.kill()


@pytest.mark.slow
def test_a_cluster_that_nobody_answers_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.runtime.staff.PATIENCE", 1)
    before = logging.getLogger("distributed").level
    with pytest.raises(InputError, match=r"cluster at tcp://127\.0\.0\.1:9"), _client("tcp://127.0.0.1:9"):
        pass
    assert logging.getLogger("distributed").level == before, "others' logging is as it was"


@pytest.mark.slow
@pytest.mark.parametrize("failures", [2, 1000])
def test_a_worker_that_ends_while_it_is_given_the_job(
    client: Client, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, calls = Client.register_plugin, [0]

    def fails(self: Client, *given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] <= failures:
            raise CommClosedError("Stream is closed")
        return register(self, *given, **named)

    monkeypatch.setattr(Client, "register_plugin", fails)
    monkeypatch.setattr(cluster, "PATIENCE", 0.01)
    if failures > cluster.SILENT:
        with pytest.raises(InputError, match=r"end before they have the job \(.*Stream is closed"):
            Cluster(Squares(), client)
        return
    monkeypatch.setattr(cluster, "PATIENCE", 1.0)
    work = Sums()
    with Cluster(Squares(), client) as pool:
        spread(pool, work, np.arange(6), 2)
    assert_squares(work, range(6))


def test_workers_that_do_not_start_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(**_: object) -> None:
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr("distributed.LocalCluster", fails)
    with pytest.raises(InputError, match=r"the 2 workers did not start \(.*Nanny failed to start"), _client("local:2"):
        raise AssertionError("there is no cluster")
