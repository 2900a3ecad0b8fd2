"""Let one process at a time write a certificate file, also where the storage has no file locks."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path

from verifiers.core.errors import InputError

#: What network file systems and some containers answer when they have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


def hdf5_locks() -> bool:
    """Return whether the user has HDF5 take the lock, whatever a program wants."""
    return os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("TRUE", "1", "BEST_EFFORT")


def busy(path: Path) -> str:
    """Say that another process has the lock."""
    return f"{path} is being written by another process: wait for it, or choose another output file"


class Lock:
    """The right to write a file, until ``release`` or the end of the process.

    It is the lock that HDF5 itself takes, so that other programs see it. Where there are none, it is a file beside the
    first, named ``.NAME.lock``, that holds this computer's name and the number of this process.

    Raises:
        InputError: another process has it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._beside: Path | None = None
        self._handle = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        if hdf5_locks():
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(self._handle)
            if isinstance(problem, BlockingIOError):
                raise InputError(busy(path)) from None
            if problem.errno not in _NO_LOCKS:
                raise
            self._handle = self._take(path.with_name(f".{path.name}.lock"))

    def release(self) -> None:
        """Let another process write."""
        if self._beside is not None:
            with suppress(OSError):
                self._beside.unlink()
        os.close(self._handle)

    def _take(self, beside: Path) -> int:
        """Make the file beside; one that a process of this computer left behind is removed."""
        own = f"{socket.gethostname()} {os.getpid()}"
        for _ in range(2):
            try:
                handle = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                computer, _, number = self._owner(beside).rpartition(" ")
                if computer != own.rpartition(" ")[0] or _is_running(number):
                    break
                beside.unlink(missing_ok=True)
            else:
                os.write(handle, own.encode())
                self._beside = beside
                return handle
        raise InputError(
            f"{self._path} is being written by process {number[:20]} on {computer[:60]}, says {beside}: wait for it, "
            "or delete that file if the process is gone"
        )

    @staticmethod
    def _owner(beside: Path) -> str:
        try:
            with open(beside, encoding="utf-8", errors="replace") as file:
                return file.read(300)
        except OSError:
            return ""


def _is_running(number: str) -> bool:
    try:
        os.kill(int(number), 0)
    except (ValueError, ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
