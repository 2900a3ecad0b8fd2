"""What a worker does, wherever it runs: it opens a job, answers tasks, and tells how each ended."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from verifiers.core.errors import InputError, one_line, out_of_memory
from verifiers.runtime.pool import Answering, Job

#: Kinds of messages from a worker.
READY, PART, DONE, FULL, RAISED = range(5)


@contextmanager
def refused(verb: str) -> Iterator[None]:
    """Say in one line why a network is not ``sent to`` other processes, or ``built in`` them.

    Raises:
        InputError: whatever pickle, and the code of the network's classes, raise.
    """
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        raise InputError(f"the network cannot be {verb} other processes ({one_line(error)}): use one") from error


def sent(job: Job) -> bytes:
    """Pickle a job.

    Raises:
        InputError: it cannot be pickled.
    """
    with refused("sent to"):
        return pickle.dumps(job)


def opened(job: bytes) -> Answering:
    """Open a job that was sent.

    Raises:
        InputError: it cannot be loaded, or does not fit into memory.
        Exception: what its opening raises.
    """
    try:
        with refused("built in"):
            loaded: Job = pickle.loads(job)
        return loaded.open()
    except Exception as error:
        if out_of_memory(error):
            few = "there is too little memory for this number of worker processes: use fewer"
            raise InputError(few) from error
        raise


def ended(work: Callable[[], object]) -> tuple[int, Any]:
    """Do some work and return the kind and value of the message that tells how it ended.

    Raises:
        ConnectionError: the process that gave the work is gone.
    """
    try:
        work()
    except ConnectionError:
        raise
    except BaseException as error:  # noqa: BLE001 - it is raised again in the other process
        full = isinstance(error, Exception) and out_of_memory(error)
        return (FULL, one_line(error)) if full else (RAISED, portable(error))
    return DONE, ""


def portable(error: BaseException) -> BaseException:
    """Return an error that another process can load, with its traceback as a note."""
    import traceback

    if not isinstance(error, InputError):
        error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - an error whose class cannot be pickled
        made = RuntimeError(f"{type(error).__name__}: {one_line(error)}")
        made.add_note("".join(getattr(error, "__notes__", [])))
        return made
    return error
