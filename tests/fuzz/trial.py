"""Use a strange file in a folder of its own, and see that it harms nothing."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli import Result, certkd
from verifiers.core.errors import LONGEST_MESSAGE, InputError

#: Content of the files that nobody may read or write.
SECRET = "SECRET-5f1d"
#: Events that no file may cause: programs, connections, deleted files.
_FORBIDDEN = ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "socket.connect", "pty.spawn")
#: Limits of a command in a process of its own.
MOST_BYTES, MOST_SECONDS = 2 * 2**30, 20.0


@dataclass
class Watch:
    """Events of this process while a file is in use; Python's audit hooks cannot be removed, so there is one."""

    active: bool = False
    outside: Path = Path("/nowhere")
    seen: list[str] = field(default_factory=list)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in _FORBIDDEN and arguments[:1] != ("uname",):  # Python's platform module
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if path.startswith(str(self.outside)) or path in ("/etc/passwd", "/dev/zero"):
                self.seen.append(f"open {path}")


WATCH = Watch()
sys.addaudithook(WATCH)


class Sandbox:
    """A folder for strange files, and beside it a folder that nothing may touch."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.outside = folder / "inside", folder / "outside"
        for made in (self.folder, self.outside):
            made.mkdir()
        (self.outside / "canary.txt").write_text(f"{SECRET}\n" * 20)
        (self.outside / "canary.yaml").write_text(f"{SECRET}: [1, 2\n")
        self._before = self._state()

    def _state(self) -> list[tuple[str, bytes, int]]:
        return [(path.name, path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(self.outside.rglob("*"))]

    def call(self, name: str, use: Callable[[], object]) -> InputError | None:
        """Use a file through a function: it returns, or refuses with ``InputError``; the refusal is returned."""
        with self._guarded(name):
            try:
                use()
            except InputError as error:
                self._check_message(name, str(error))
                return error
        return None

    def command(self, name: str, *arguments: str | Path) -> Result:
        """Use a file through a command in this process: 0, 1 or 2, and a refusal is one line."""
        with self._guarded(name):
            result = certkd(*arguments)
        self._check_result(name, result)
        return result

    def process(self, name: str, *arguments: str | Path) -> Result:
        """Use a file through a command in a process of its own, within limits of memory and time."""
        code = "from certkd.cli import main; main()"
        files = [open(self.folder / f".{stream}", "w+") for stream in ("out", "err")]  # noqa: SIM115
        with self._guarded(name, watched=False):
            started = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=files[0],
                stderr=files[1],
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
                preexec_fn=_limits,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        texts = []
        for file in files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        result = Result(process.returncode, *texts)
        self._check_result(name, result)
        assert used.ru_maxrss * 1024 < MOST_BYTES, f"{name}: took {used.ru_maxrss / 2**20:.1f} GiB"
        assert used.ru_utime + used.ru_stime < MOST_SECONDS, f"{name}: took {time.monotonic() - started:.0f} s"
        return result

    @contextmanager
    def _guarded(self, name: str, *, watched: bool = True) -> Iterator[None]:
        WATCH.outside, WATCH.seen, WATCH.active = self.outside, [], watched
        try:
            yield
        except BaseException as error:
            error.add_note(f"the file: {name}")
            raise
        finally:
            WATCH.active = False
        assert not WATCH.seen, f"{name}: {WATCH.seen}"
        assert self._state() == self._before, f"{name}: a file outside was changed"

    def _check_result(self, name: str, result: Result) -> None:
        assert result.code in (0, 1, 2), f"{name}: exit code {result.code}: {result.err[-2000:]}"
        assert "Traceback" not in result.err and "this is a bug" not in result.err, f"{name}: {result.err[-2000:]}"
        shown = f"{result.out}{result.err}"
        assert SECRET not in shown and "root:" not in shown, f"{name}: shows a file outside"
        bad = {c for c in shown if not c.isprintable()} - {"\n"}
        assert not bad, f"{name}: control characters {bad}"
        if result.code == 2:
            self._check_message(name, result.err.splitlines()[-1] if result.err else "")

    def _check_message(self, name: str, message: str) -> None:
        assert message and len(message) <= LONGEST_MESSAGE + 100, f"{name}: {len(message)} characters of message"
        assert message.isprintable(), f"{name}: {message!r}"
        assert SECRET not in message and "root:" not in message, f"{name}: {message!r} shows a file outside"


def _limits() -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
    resource.setrlimit(resource.RLIMIT_AS, (12 * 2**30, 12 * 2**30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
