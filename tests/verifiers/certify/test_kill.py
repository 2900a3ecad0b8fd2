"""Killed at any moment, a certification leaves a readable file with every finished row, and goes on from there."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.certifying import certify
from tests.verifiers.results.test_store import (
    PIXELS,
    assert_images,
    assert_whole,
    equal_but_seconds,
    open_file,
    start,
    values_of,
    write_all,
    write_pending,
)
from verifiers.core.columns import COMMON_COLUMNS
from verifiers.core.status import Status
from verifiers.methods.registry import find
from verifiers.results import reader
from verifiers.results.rows import Certificates

ROWS = 800


def killed(
    target: Callable[..., None], *arguments: Any, messages: int, until: Callable[[], bool] = lambda: True
) -> bool:
    """Run in a new process; SIGKILL it after its n-th message, once ``until`` holds. Whether the kill was in time."""
    process, connection = start(target, *arguments)
    with suppress(EOFError):  # the process has ended
        for _ in range(messages):
            connection.recv()
    while process.is_alive() and not until():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0), f"the process failed by itself: {process.exitcode}"
    return process.exitcode == -signal.SIGKILL


def _write_slowly(path: Path, connection: Connection) -> None:
    with open_file(path, ROWS) as file:
        for start_row in range(0, ROWS, 5):
            rows = np.intersect1d(np.arange(start_row, start_row + 5), file.pending("wave"))
            file.note("wave", "reason", f"batch {start_row} " * (start_row % 30))
            if len(rows):
                connection.send("another batch")
                file.write("wave", rows, values_of(rows))


def _check_unfinished(path: Path) -> int:
    """A file that a killed process left is whole as far as it goes; how many rows it has."""
    done = assert_whole(reader.read(path)["wave"])
    if len(done):
        assert_images(path, done)
    return len(done)


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_no_finished_row(count: int, tmp_path: Path) -> None:
    """Kills while rows are written; each next process goes on where the last one was killed."""
    process, _connection = start(_write_slowly, tmp_path / "straight.h5")
    process.join()
    rng, path, done, kills, middle = random.Random(0), tmp_path / "a.h5", 0, 0, 0
    while kills < count:
        kills += killed(_write_slowly, path, messages=rng.randint(0, 60))
        if not path.exists():
            continue
        before, done = done, _check_unfinished(path)
        assert done >= before, f"{before - done} finished rows were lost"
        middle += 0 < done < ROWS
        if done == ROWS:  # start again with another file
            path, done = tmp_path / f"{kills}.h5", 0
    assert middle >= count / 2, f"only {middle} kills hit a file in the middle: the test is of no use"
    write_all(path, ROWS, batch=50)
    straight = reader.read(tmp_path / "straight.h5")
    assert len(assert_whole(straight["wave"])) == ROWS
    equal_but_seconds(reader.read(path), straight, ["wave"])
    assert_images(path, np.arange(ROWS))


def _create_big(path: Path, connection: Connection) -> None:
    connection.send("go")
    with open_file(path, 300_000):
        connection.recv()


@pytest.mark.parametrize("count", [6, pytest.param(40, marks=pytest.mark.slow)])
def test_a_kill_during_creation_leaves_nothing_in_the_way(count: int, tmp_path: Path) -> None:
    """Kills around the publication of a file: it is whole or not there, and the next process creates it."""
    absent = 0
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "a.h5"
        until = (lambda: True, lambda at=folder: any(at.iterdir()), path.exists)[number % 3]
        assert killed(_create_big, path, messages=1, until=until)
        absent += not path.exists()
        if path.exists():
            assert reader.read(path)["wave"].count(Status.PENDING) == 300_000, (
                "a file was published before it was whole"
            )
        with open_file(path, 300_000) as file:
            file.write("wave", np.arange(5), values_of(np.arange(5)))
        assert len(assert_whole(reader.read(path)["wave"])) == 5
    assert absent >= 1, "no kill hit before publication: the test is of no use"


def _die_at_call(path: Path, name: str, before: bool, connection: Connection) -> None:
    original = getattr(os, name)

    def die(*arguments: Any) -> None:
        if not before:
            original(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, die)
    connection.send("go")
    write_all(path)


@pytest.mark.parametrize(("name", "before"), [("fsync", True), ("link", True), ("link", False)])
def test_a_kill_at_each_step_of_publication(tmp_path: Path, name: str, before: bool) -> None:
    path = tmp_path / "a.h5"
    process, connection = start(_die_at_call, path, name, before)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the step was not reached"
    assert path.exists() == (not before), f"published {'before' if before else 'after'} {name}"
    write_all(path)
    assert len(assert_whole(reader.read(path)["wave"])) == 40
    connection.close()


def test_a_left_over_second_name_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the link, then the file moved away, then a process of the same number (in a container: 1)."""
    write_all(tmp_path / "a.h5")
    monkeypatch.setattr(os, "getpid", lambda: 77)
    os.link(tmp_path / "a.h5", tmp_path / ".a.h5.77.new")
    (tmp_path / "a.h5").rename(tmp_path / "kept.h5")
    with open_file(tmp_path / "a.h5"):
        pass
    assert len(assert_whole(reader.read(tmp_path / "kept.h5")["wave"])) == 40, "a finished file was overwritten"
    assert not (tmp_path / ".a.h5.77.new").exists(), "the left-over was not cleaned up"


def test_rows_without_a_status_are_written_again(tmp_path: Path) -> None:
    """What a kill between data and status leaves: values without a status, which count for nothing."""
    half = {name: values for name, values in values_of(np.arange(9)).items() if name != "status"}
    with open_file(tmp_path / "a.h5") as file:
        for name, values in half.items():
            file._file["wave"][name][:9] = values * 0 + 1
    with open_file(tmp_path / "a.h5") as file:
        assert len(file.pending("wave")) == 40, "rows without a status must be pending"
        write_pending(file, 9)
    assert_images(tmp_path / "a.h5", assert_whole(reader.read(tmp_path / "a.h5")["wave"]), PIXELS)


# A real certification ---------------------------------------------------------------------------------------------

#: Kills of each method in the slow suite; ``CERTKD_KILLS=10`` before a release.
KILLS = int(os.environ.get("CERTKD_KILLS", "1"))
#: Settings and number of samples of each method: slow enough to be killed in the middle.
KILLED: dict[str, tuple[int, dict[str, Any]]] = {
    "pgd": (60, {"eps": "1/20", "options": {"steps": 4, "restarts": 2}}),
    "crown": (30, {"eps": "1/50", "tolerance": 0.05}),
    "complete": (30, {"eps": "1/8", "options": {"steps": 2, "restarts": 1, "iterations": 4, "time_limit": 60.0}}),
    "smoothing": (30, {"eps": "1/10", "norm": "l2", "options": {"sigma": 0.2, "n": 2000, "n0": 20}}),
}


def _run(path: Path, method: str) -> Certificates:
    torch.set_num_threads(1)
    generator, (samples, settings) = torch.Generator().manual_seed(3), KILLED[method]
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU() if method == "complete" else nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    images, labels = torch.rand(samples, 4, generator=generator), torch.randint(0, 3, (samples,), generator=generator)
    return certify(model, images, labels, methods=(method,), out=path, batch_size=2, **settings)


def count_of(path: Path, method: str) -> int:
    """How many rows are finished."""
    return int((reader.read(path)[method]["status"] != Status.PENDING).sum()) if path.exists() else 0


def _certify(path: Path, method: str, connection: Connection) -> None:
    _run(path, method)


def assert_same(path: Path, straight: Path, method: str, rows: np.ndarray) -> None:
    """Compare some rows with those of a run without kills, but for the time they took; images and votes too."""
    one, two = reader.read(path)[method], reader.read(straight)[method]
    for column in (*COMMON_COLUMNS, *find(method).columns):
        if column.axes:
            ours, theirs = (reader.read_images(place, method, column.name, rows) for place in (path, straight))
        else:
            ours, theirs = one[column.name][rows], two[column.name][rows]
        same = np.array_equal(ours, theirs, equal_nan=column.dtype.startswith("float"))
        assert same or column.units == "seconds", f"{method}: column {column.name} differs"


@pytest.mark.slow
@pytest.mark.parametrize("method", KILLED)
def test_a_killed_certification_goes_on_to_the_same_result(method: str, tmp_path: Path) -> None:
    straight, samples = tmp_path / "straight.h5", KILLED[method][0]
    statuses = {Status(status) for status in _run(straight, method)[method]["status"]}
    assert len(statuses) >= 2, f"the samples are too much alike: {statuses}"
    rng, path, kills, middle = random.Random(2), tmp_path / "0.h5", 0, 0
    for attempt in range(1, 10 * KILLS):
        done = count_of(path, method)
        wanted = min(done + rng.randint(1, samples // 3), samples - 1)
        kills += killed(_certify, path, method, messages=0, until=lambda: count_of(path, method) >= wanted)  # noqa: B023
        left = reader.read(path)[method]["status"] != Status.PENDING
        assert left.sum() >= done, "finished rows were lost"
        assert_same(path, straight, method, np.flatnonzero(left))
        middle += 0 < left.sum() < samples
        if kills == KILLS:
            break
        if left.sum() >= samples - 4:  # start again with another file
            path = tmp_path / f"{attempt}.h5"
    assert kills == KILLS, f"{kills} kills were in time"
    assert middle >= KILLS / 2, f"only {middle} kills hit in the middle: the test is of no use"
    _run(path, method)
    assert_same(path, straight, method, np.arange(samples))
