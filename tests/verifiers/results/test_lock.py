"""One writer at a time, with file locks and without."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.verifiers.results.test_store import open_file, write_pending
from verifiers.core.errors import InputError


@pytest.fixture(params=["locks", "no locks", "HDF5 told not to lock"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Storage that has file locks or none."""
    if request.param == "no locks":

        def refuse(handle: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", refuse)
    if request.param == "HDF5 told not to lock":
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    return str(request.param)


def test_a_second_writer_is_refused_and_the_next_one_goes_on(tmp_path: Path, storage: str) -> None:
    path = tmp_path / "a.h5"
    with open_file(path) as file:
        for _ in range(2):
            with pytest.raises(InputError, match="is being written by"):
                open_file(path)
        write_pending(file, 7)
    with open_file(path) as file:
        assert not len(file.pending("wave"))
    assert os.listdir(tmp_path) == ["a.h5"], "a lock was left behind"


@pytest.mark.parametrize("storage", ["no locks"], indirect=True)
def test_a_lock_that_a_killed_process_left_is_taken_over(tmp_path: Path, storage: str) -> None:
    path, lock = tmp_path / "a.h5", tmp_path / ".a.h5.lock"
    with open_file(path):
        assert lock.read_text() == f"{socket.gethostname()} {os.getpid()}"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for owner in (f"{socket.gethostname()} {gone.pid}", f"{socket.gethostname()} 9999999999999999999999"):
        lock.write_text(owner)
        open_file(path).__exit__(None, None, None)
        assert not lock.exists()


@pytest.mark.parametrize("storage", ["no locks"], indirect=True)
@pytest.mark.parametrize("owner", ["elsewhere 1", "\x1b[2J", "", f"{socket.gethostname()} {os.getppid()}"])
def test_a_lock_of_another_computer_or_process_is_named_and_stays(tmp_path: Path, storage: str, owner: str) -> None:
    with open_file(tmp_path / "a.h5"):
        pass
    lock = tmp_path / ".a.h5.lock"
    lock.write_text(owner)
    with pytest.raises(InputError, match=r"says .*a\.h5\.lock: wait for it, or delete that file") as refusal:
        open_file(tmp_path / "a.h5")
    assert str(refusal.value).isprintable() and lock.read_text() == owner


@pytest.mark.slow
def test_a_user_who_has_hdf5_lock_gets_its_lock(tmp_path: Path) -> None:
    start = "import sys; from pathlib import Path; from tests.verifiers.results.test_store import open_file\n"
    second = f"{start}open_file(Path(sys.argv[1]))"
    first = (
        f"import subprocess; {start}"
        "with open_file(Path(sys.argv[1])):\n"
        f"    subprocess.run([sys.executable, '-c', {second!r}, sys.argv[1]])"
    )
    environment = {**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", first, str(tmp_path / "a.h5")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "InputError" in done.stderr, done.stderr
    assert "is being written by another process" in done.stderr, done.stderr
