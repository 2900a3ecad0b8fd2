"""What workers share: a job is sent and opened, and a task tells how it ended."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from tests.pools import Lambdas, Squares, Unopened
from verifiers.core.errors import InputError
from verifiers.runtime.pool import Send
from verifiers.runtime.tasks import DONE, FULL, RAISED, ended, opened, portable, refused, sent


class Full:
    """A job that does not fit into memory where it is opened."""

    def open(self) -> Callable[[Any, Send], None]:
        raise MemoryError


class Unloadable:
    """A job whose code fails where it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return int, ("no number",)


def test_a_job_arrives_as_it_was_sent() -> None:
    parts: list[Any] = []
    opened(sent(Squares()))([3, 4], parts.append)
    assert parts == [(3, 9), (4, 16)]


def test_a_job_that_cannot_be_sent_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"the network cannot be sent to other processes \(.+\): use one"):
        sent(Lambdas())  # type: ignore[arg-type]


@pytest.mark.parametrize("job", [b"", b"no pickle", pickle.dumps(Unloadable())])
def test_a_job_that_cannot_be_loaded_says_what_to_do(job: bytes) -> None:
    with pytest.raises(InputError, match=r"the network cannot be built in other processes \(.+\): use one"):
        opened(job)


def test_what_a_job_raises_is_raised() -> None:
    with pytest.raises(LookupError, match="no such thing"):
        opened(sent(Unopened()))


def test_a_job_that_is_too_large_names_the_number_of_workers() -> None:
    with pytest.raises(InputError, match="too little memory for this number of worker processes: use fewer"):
        opened(sent(Full()))


def failing(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_work_tells_how_it_ended() -> None:
    assert ended(lambda: 5) == (DONE, "")
    assert ended(failing(MemoryError()))[0] == FULL
    assert ended(failing(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")))[0] == FULL
    kind, error = ended(failing(ValueError("wrong")))
    assert kind == RAISED and isinstance(error, ValueError) and "raise error" in error.__notes__[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_end_of_the_process_is_told_too(error: BaseException) -> None:
    kind, told = ended(failing(error))
    assert kind == RAISED and type(told) is type(error)


def test_a_lost_connection_is_nobody_s_answer() -> None:
    for error in (BrokenPipeError(), ConnectionResetError()):
        with pytest.raises(ConnectionError):
            ended(failing(error))


def test_memory_that_runs_out_is_no_fault_of_the_network() -> None:
    with pytest.raises(MemoryError), refused("sent to"):
        raise MemoryError


def test_an_error_travels_with_its_lines() -> None:
    try:
        raise ZeroDivisionError("in line one\nand two")
    except ZeroDivisionError as error:
        found = pickle.loads(pickle.dumps(portable(error)))
    assert str(found) == "in line one\nand two" and "test_an_error_travels" in found.__notes__[0]
    assert not getattr(portable(InputError("a line")), "__notes__", []), "what a person can correct has no traceback"
