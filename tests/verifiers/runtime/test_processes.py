"""What a pool of processes does beside its messages: threads, signals, and errors on their way."""

import multiprocessing
import os
import pickle
import signal
from multiprocessing.connection import Connection

import pytest

from tests.pools import Squares, Unopened
from verifiers.core.errors import InputError
from verifiers.runtime import processes, tasks
from verifiers.runtime.processes import THREAD_VARIABLES
from verifiers.runtime.tasks import DONE, FULL, PART, RAISED, READY


@pytest.fixture
def ends() -> tuple[Connection, Connection]:
    return multiprocessing.Pipe()


def heard(here: Connection) -> list[tuple[int, object]]:
    found = []
    while here.poll():
        found.append(pickle.loads(here.recv_bytes()))
    return found


@pytest.mark.parametrize("before", [None, "7"])
def test_threads_are_limited_for_new_processes_alone(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        if before is not None:
            monkeypatch.setenv(name, before)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    with processes._environment(3):
        assert {os.environ[name] for name in THREAD_VARIABLES} == {"3"}
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, set()), (
            "Ctrl-C would end them while they start"
        )
    assert {os.environ.get(name) for name in THREAD_VARIABLES} == {before}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == mask


def test_signals_have_names() -> None:
    assert processes._signal(signal.SIGSEGV) == "SIGSEGV"
    assert processes._signal(signal.SIGKILL) == "SIGKILL, as the system does when memory runs out"
    assert processes._signal(4000) == "signal 4000"


def test_a_task_is_answered_in_parts(ends: tuple[Connection, Connection]) -> None:
    here, there = ends
    answer = Squares(full=(5,), broken=(6,)).open()
    for task in ([2, 3], [4, 5], [6]):
        processes._answer(there, answer, pickle.dumps(task))
    kinds = [kind for kind, _ in heard(here)]
    assert kinds == [PART, PART, DONE, PART, FULL, RAISED]


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    class Local(Exception):
        pass

    made = tasks.portable(Local("of this function"))
    assert type(made) is RuntimeError and str(made) == "Local: of this function" and made.__notes__
    kept = tasks.portable(InputError("a line"))
    assert isinstance(kept, InputError) and not getattr(kept, "__notes__", [])


@pytest.mark.parametrize("job", [b"no pickle", pickle.dumps(Unopened())])
def test_a_job_that_fails_is_said_once(job: bytes, ends: tuple[Connection, Connection]) -> None:
    if job == b"no pickle":
        with pytest.raises(InputError, match=r"cannot be built in other processes \(.*\): use one"):
            tasks.opened(job)
    else:
        with pytest.raises(LookupError, match="no such thing"):
            tasks.opened(job)
    assert READY not in [kind for kind, _ in heard(ends[0])]
