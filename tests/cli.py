"""Run ``certkd`` in this process, and as a process of its own where only that can show something."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from certkd.cli import main
from tests.paths import ROOT


@dataclass(frozen=True)
class Result:
    """The exit code of a command and its output."""

    code: int
    out: str
    err: str


def certkd(*arguments: str | Path) -> Result:
    """Run a command in this process."""
    before, out, err = sys.argv, io.StringIO(), io.StringIO()
    sys.argv = ["certkd", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as caught:
            main()
    finally:
        sys.argv = before
    return Result(int(caught.value.code or 0), out.getvalue(), err.getvalue())


def succeeds(*arguments: str | Path) -> str:
    """Return what a command prints; fail unless it exits with 0."""
    result = certkd(*arguments)
    assert result.code == 0, f"exit code {result.code}: {result.err}"
    return result.out


def refused(*arguments: str | Path) -> str:
    """Return the only line of a command that must exit with 2 and print nothing else."""
    result = certkd(*arguments)
    assert result.code == 2, f"exit code {result.code} instead of 2: {result.err}"
    assert result.err.count("\n") == 1 and result.err.endswith("\n"), f"not one line: {result.err!r}"
    assert "Traceback" not in result.err and "bug" not in result.err and not result.out
    return result.err


def refused_after_clean(*arguments: str | Path) -> str:
    """Return the last line of a command that must exit with 2 after its first progress lines."""
    result = certkd(*arguments)
    assert result.code == 2 and not result.out and "Traceback" not in result.err, result.err
    return result.err.splitlines()[-1]


def process(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    """Start Python code in a new process that Ctrl-C interrupts, even where the tests run in the background."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


class Interrupted:
    """Stand in for a callback; the second call raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.left = 2

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
