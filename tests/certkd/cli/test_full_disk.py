"""A full disk is one line and exit code 2 for every kind of output, and nothing that was finished is lost."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from certkd.training.log import RunLog
from tests.certificate_files import write_file
from tests.cli import certkd, refused, succeeds
from tests.paths import REFERENCE, ROOT
from verifiers.core.errors import InputError
from verifiers.core.status import Status


@contextmanager
def full(limit: int) -> Iterator[None]:
    """No file can become larger than ``limit`` bytes: the system answers as a full disk does."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def certificates(path: Path) -> Path:
    count, random = 50, np.random.default_rng(0)
    falsified = {
        **{name: np.arange(count) for name in ("index", "label", "predicted")},
        **{
            "status": np.full(count, Status.FALSIFIED, "u1"),
            "correct": np.ones(count, "u1"),
            "radius": np.zeros(count),
            "margin": np.full(count, -1.0),
        },
        **{"distance": np.full(count, 0.1), "counterexample": random.random((count, 1, 2, 2)).astype("f4")},
    }
    proved = {
        **{name: np.arange(count) for name in ("index", "label", "predicted")},
        **{
            "status": np.full(count, Status.CERTIFIED, "u1"),
            "correct": np.ones(count, "u1"),
            "radius": 0.09 * random.random(count),
        },
    }
    write_file(path, {"pgd": falsified, "ibp": proved}, eps="0.1", model_sha256="", seed=0)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        "export A.h5 --out o.csv",
        "export A.h5 --out o.json",
        "export A.h5 --out o.npz",
        "compare A.h5 B.h5 --plot o.png",
    ],
)
@pytest.mark.thin(2)
def test_what_is_written_from_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    monkeypatch.chdir(tmp_path)
    certificates(Path("A.h5")), certificates(Path("B.h5"))
    name = arguments.split()[-1]
    Path(name).write_text("what was there")
    with full(600):
        result = certkd(*arguments.split(), "--overwrite")
    message = result.err
    assert result.code == 2 and message.count("\n") == 1, result
    assert f"cannot write {name}: " in message and "File too large" in message, message
    assert Path(name).read_text() == "what was there" and sorted(os.listdir()) == sorted(["A.h5", "B.h5", name])
    succeeds(*arguments.split(), "--overwrite")


@pytest.mark.slow
def test_networks_and_properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    command = ("export", "--model", REFERENCE / "kd.pt", "--out", "o", "--eps", "0.1", "--limit", "1")
    with full(2000):
        message = refused(*command)
    assert "cannot write " in message and "File too large" in message, message


def test_an_imported_log(tmp_path: Path) -> None:
    rows = "".join(f"{i}\t1\t1\t0.473\t1\n" for i in range(50))
    (tmp_path / "a.tsv").write_text(f"idx\tlabel\tpredict\tradius\tcorrect\n{rows}")
    settings = ("--n", "100000", "--alpha", "0.001", "--sigma", "0.25")
    with full(3000):
        assert "cannot write " in refused("import-log", tmp_path / "a.tsv", *settings)
    assert os.listdir(tmp_path) == ["a.tsv"]


def test_a_training_says_what_is_kept(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "out: o\ndata: {limit: 30}\nmodel: {options: {hidden: [4]}}\nepochs: 1\nobjective: {kind: standard}\n"
    )
    with full(2000):
        assert "cannot write " in refused("train", "--config", config, "--set", f"out={tmp_path / 'o'}")


# the logs of a training


RECORD = {"epoch": 0, "terms": {"loss": 1.0, "ce": 1.0}, "validation": {"clean": 0.5}, "seconds": 1.0}


def test_the_log_of_a_training(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    with full(200), pytest.raises(InputError, match=r"cannot write .*: File too large; finished epochs are"):
        for epoch in range(10):
            log.write({**RECORD, "epoch": epoch})
    with full(200), pytest.raises(InputError, match=r"cannot write .*log\.jsonl"):
        RunLog(tmp_path / "new", [RECORD] * 10)


def test_tensorboards_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = RunLog(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").symlink_to(os.devnull)
    with (
        full(300),
        pytest.raises(InputError, match=r"cannot write .*events\.out\.tfevents.*: File too large; finished"),
    ):
        for epoch in range(10):
            log.write({**RECORD, "epoch": epoch})


def test_a_folder_that_goes_while_training(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "o")
    log.write(RECORD)
    (tmp_path / "o" / "log.jsonl").unlink()
    for file in (tmp_path / "o").rglob("events*"):
        file.unlink()
    log.write({**RECORD, "epoch": 1})
    assert json.loads((tmp_path / "o" / "log.jsonl").read_text())["epoch"] == 1
    (tmp_path / "o" / "log.jsonl").unlink()
    (tmp_path / "o").rename(tmp_path / "gone")
    with pytest.raises(InputError, match=r"cannot write .*log\.jsonl: No such file or directory; finished epochs"):
        log.write({**RECORD, "epoch": 2})


# the terminal


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize(("stream", "code"), [("stdout", 2), ("stderr", 2)])
def test_an_output_that_is_full(stream: str, code: int) -> None:
    arguments = ["methods"] if stream == "stdout" else ["show", "missing.h5"]
    command = [sys.executable, "-c", "from certkd.cli import main; main()", *arguments]
    with open("/dev/full", "w") as device:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: device}
        done = subprocess.run(command, cwd=ROOT, text=True, **streams)  # type: ignore[call-overload]
    assert done.returncode == code, done
    if stream == "stdout":
        assert done.stderr.startswith("certkd: cannot write the output: ") and done.stderr.count("\n") == 1, done.stderr
