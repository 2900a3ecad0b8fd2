"""The certificate file: what is in it, and what happens when files, disks and processes misbehave."""

import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from verifiers.core.columns import COMMON_COLUMNS, Column, Columns
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.status import FAILURES, Status
from verifiers.results import reader
from verifiers.results import writer as store
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.writer import CertificateFile, MethodTable, check_output

#: New processes come from a server that has imported this module once.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.verifiers.certify.test_kill", __name__])

PIXELS = 50
IDENTITY = {"model_sha256": "ab" * 32, "norm": "linf", "samples": 40, "seed": 0, "settings": {"wave": {"steps": 3}}}
FACTS = {"device": "cpu", "tf32": False, "command": "certkd certify", "started": "2026-11-20T00:00:00+00:00"}


EPS = Epsilon.parse("2/255")
WAVE = MethodTable(
    "wave",
    columns=(
        Column("distance", "float64", "pixels", "length of the counterexample"),
        Column("votes", "int64", "", "a count"),
        Column("image", "float32", "pixels", "the counterexample", axes=("image",)),
    ),
    attributes={
        "claim": "a claim",
        "paper": "a paper",
        "eps": EPS.value,
        "eps_text": EPS.text,
        "norm": "linf",
        "seed": 0,
        "steps": 3,
    },
)


def open_file(
    path: Path | None, samples: int = 40, identity: dict[str, Any] = IDENTITY, pixels: int = PIXELS
) -> CertificateFile:
    """The writer of a file with the one method ``wave``."""
    return CertificateFile(
        path,
        identity=identity,
        facts=FACTS,
        samples=samples,
        sizes={"image": (pixels,)},
        methods=(WAVE,),
    )


def values_of(rows: np.ndarray, pixels: int = PIXELS, status: Status = Status.CERTIFIED) -> Columns:
    """Columns that are a function of the row number, so that a wrong or mixed row is recognised."""
    return {
        "index": rows + 1000,
        "label": rows * 3,
        "predicted": rows * 3 + 1,
        "correct": (rows % 2).astype("uint8"),
        "radius": (rows + 0.25) / 2**20,
        "margin": rows - 0.5,
        "certified": (rows % 3 == 0).astype("uint8"),
        "seconds": rows + 0.75,
        "status": np.full(len(rows), status.value, "uint8"),
        "distance": rows + 0.125,
        "votes": rows * 7,
        "image": np.repeat(rows[:, None] + 0.5, pixels, axis=1).astype("float32"),
    }


def assert_whole(rows: MethodRows) -> np.ndarray:
    """Every row that has a status has all its values; returns the numbers of these rows."""
    done = np.flatnonzero(rows["status"] != Status.PENDING)
    expected = values_of(done)
    for name in rows.columns:
        wrong = done[rows[name][done] != expected[name]]
        assert len(wrong) == 0, f"column {name}: rows {wrong[:5]} have a status and other values than were written"
    return done


def assert_images(path: Path, done: np.ndarray, pixels: int = PIXELS) -> None:
    """Every finished row has its image."""
    images = reader.read_images(path, "wave", "image", done)
    assert (images == values_of(done, pixels)["image"]).all(), "a row has a status and not the image that was written"


def write_all(path: Path, samples: int = 40, batch: int = 4) -> None:
    """Finish a file."""
    with open_file(path, samples) as file:
        write_pending(file, batch)


def write_pending(file: CertificateFile, batch: int, pixels: int = PIXELS) -> None:
    """Write every row that is pending."""
    pending = file.pending("wave")
    for start in range(0, len(pending), batch):
        rows = pending[start : start + batch]
        file.write("wave", rows, values_of(rows, pixels))


# What is in a file ------------------------------------------------------------------------------------------------


def test_every_dataset_has_units_and_a_description(tmp_path: Path) -> None:
    write_all(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        group = file["wave"]
        expected = {column.name: column for column in (*COMMON_COLUMNS, *WAVE.columns)}
        assert set(group) == set(expected), "the group holds other datasets than the method's columns"
        for name, column in expected.items():
            assert group[name].attrs["units"].decode() == column.units, f"{name}: units"
            assert group[name].attrs["description"].decode() == column.description != "", f"{name}: description"
            assert group[name].dtype == np.dtype(column.dtype), f"{name}: dtype"
            assert group[name].shape == ((40, PIXELS) if column.axes else (40,)), f"{name}: shape"


def test_root_attributes_hold_identity_and_facts(tmp_path: Path) -> None:
    write_all(tmp_path / "a.h5")
    attributes = reader.read(tmp_path / "a.h5").attributes
    assert (attributes["format"], attributes["format_version"]) == ("certkd-certificates", 4)
    for name, value in {**IDENTITY, **FACTS}.items():
        if name != "settings":
            assert attributes[name] == value, f"root attribute {name}"
    assert attributes["settings"] == '{"wave": {"steps": 3}}', "settings are stored as JSON"


def test_method_attributes_and_eps_as_text(tmp_path: Path) -> None:
    write_all(tmp_path / "a.h5")
    rows = reader.read(tmp_path / "a.h5")["wave"]
    wanted = {
        "claim": "a claim",
        "paper": "a paper",
        "norm": "linf",
        "steps": 3,
        "seed": 0,
    }
    assert {name: rows.attributes[name] for name in wanted} == wanted
    assert rows.attributes["eps_text"] == "2/255", "eps must come back as it was written"
    assert rows.eps == 2 / 255


def test_values_come_back(tmp_path: Path) -> None:
    write_all(tmp_path / "a.h5")
    certificates = reader.read(tmp_path / "a.h5")
    assert len(assert_whole(certificates["wave"])) == len(certificates["wave"]) == 40
    assert certificates.pending == 0
    assert certificates["wave"].count(Status.CERTIFIED) == 40
    assert "image" not in certificates.to_dict()["wave"], "images do not belong into a table"
    assert_images(tmp_path / "a.h5", np.arange(40))


def test_a_new_file_has_only_fill_values(tmp_path: Path) -> None:
    with open_file(tmp_path / "a.h5"):
        pass
    rows = reader.read(tmp_path / "a.h5")["wave"]
    assert (rows["status"] == Status.PENDING).all()
    assert np.isnan(rows["radius"]).all(), "a radius that was not computed must not look like one"
    assert (rows["label"] == -1).all()
    assert (rows["certified"] == 0).all()


def test_rows_need_not_be_consecutive(tmp_path: Path) -> None:
    rows = np.array([1, 2, 7, 30])
    with open_file(tmp_path / "a.h5") as file:
        file.write("wave", rows, values_of(rows))
    assert assert_whole(reader.read(tmp_path / "a.h5")["wave"]).tolist() == rows.tolist()
    assert_images(tmp_path / "a.h5", rows)


def test_images_come_in_the_order_asked(tmp_path: Path) -> None:
    write_all(tmp_path / "a.h5")
    images = reader.read_images(tmp_path / "a.h5", "wave", "image", [9, 2, 9, 5])
    assert images[:, 0].tolist() == [9.5, 2.5, 9.5, 5.5]


def test_images_are_holes_until_written(tmp_path: Path) -> None:
    with open_file(tmp_path / "a.h5", samples=400, pixels=50_000) as file:
        before = os.stat(tmp_path / "a.h5")
        nothing = {**values_of(np.arange(100), 50_000), "image": np.full((100, 50_000), np.nan, "float32")}
        file.write("wave", np.arange(100), nothing)
        without = os.stat(tmp_path / "a.h5").st_blocks
        file.write("wave", np.arange(100, 110), values_of(np.arange(100, 110), 50_000))
        after = os.stat(tmp_path / "a.h5").st_blocks
    assert before.st_size > 70e6, "images have no room in the file"
    assert before.st_blocks * 512 < 2e6, "images that were not written take disk space"
    assert without * 512 < 2e6, "rows without an image take the space of one"
    assert 1.8e6 < (after - without) * 512 < 4e6, "ten images of 200 kB were written"


def test_notes_are_attributes_and_can_be_taken_back(tmp_path: Path) -> None:
    with open_file(tmp_path / "a.h5") as file:
        file.note("wave", "engine", "β-engine")
        file.note("wave", "reason", "x" * 5000)
        assert len(file.read()["wave"].attributes["reason"]) == store.NOTE_LENGTH, "a long note is cut"
        file.note("wave", "reason", None)
    attributes = reader.read(tmp_path / "a.h5")["wave"].attributes
    assert attributes["engine"] == "β-engine"
    assert "reason" not in attributes
    assert "notes" not in attributes


def test_notes_leave_the_layout_of_the_file_alone(tmp_path: Path) -> None:
    """A kill between the writes of a moved header makes a file unreadable, so that nothing may move."""
    path = tmp_path / "a.h5"
    with open_file(path):
        pass
    before = path.read_bytes()
    with open_file(path) as file:
        file.note("wave", "engine", "auto-lirpa")
        file.note("wave", "reason", "because " * 90)
    after = path.read_bytes()
    assert len(after) == len(before), "a note made the file longer"
    changed = np.flatnonzero(np.frombuffer(before, "u1") != np.frombuffer(after, "u1"))
    assert len(changed) > 0, "the notes were not written"
    assert changed[-1] - changed[0] < store.NOTES_BYTES, "a note changed the file in more than one place"


def test_too_many_notes_are_refused_and_harm_nothing() -> None:
    with open_file(None) as file, pytest.raises(ValueError, match="notes take more than"):
        for number in range(20):
            file.note("wave", f"note{number}", "x" * 1000)


def test_attack_distance_is_the_shortest_known(tmp_path: Path) -> None:
    with open_file(tmp_path / "a.h5") as file:
        file.write("wave", np.array([3]), values_of(np.array([3])))
        assert file.attack_distance(np.array([3]))[0] == 3.125
        assert np.isnan(file.attack_distance(np.array([4]))[0]), "no counterexample is not a short one"


def test_two_results_in_memory_at_a_time() -> None:
    with open_file(None) as one, open_file(None) as two:
        write_pending(one, 7)
        assert len(assert_whole(one.read()["wave"])) == 40
        assert len(two.pending("wave")) == 40, "two results in memory share their rows"
    assert not Path("in memory").exists(), "a result in memory was written to disk"


# Going on with a file ---------------------------------------------------------------------------------------------


def test_the_same_configuration_goes_on_with_pending_rows(tmp_path: Path) -> None:
    with open_file(tmp_path / "a.h5") as file:
        file.write("wave", np.arange(10, 15), values_of(np.arange(10, 15)))
    with open_file(tmp_path / "a.h5") as file:
        assert file.pending("wave").tolist() == [*range(10), *range(15, 40)]
        write_pending(file, 6)
    assert len(assert_whole(reader.read(tmp_path / "a.h5")["wave"])) == 40


@pytest.mark.parametrize("failure", FAILURES)
def test_failed_rows_are_tried_again(tmp_path: Path, failure: Status) -> None:
    with open_file(tmp_path / "a.h5") as file:
        file.write("wave", np.arange(5), values_of(np.arange(5), status=failure))
        file.write("wave", np.arange(5, 40), values_of(np.arange(5, 40)))
        assert len(file.pending("wave")) == 0, "a failure is an answer until the next run"
    with open_file(tmp_path / "a.h5") as file:
        assert file.pending("wave").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("status", sorted(set(Status) - {*FAILURES, Status.PENDING}))
def test_answers_are_kept(tmp_path: Path, status: Status) -> None:
    with open_file(tmp_path / "a.h5") as file:
        file.write("wave", np.arange(5), values_of(np.arange(5), status=status))
    with open_file(tmp_path / "a.h5") as file:
        assert file.pending("wave").tolist() == list(range(5, 40)), f"a {status.name} row was tried again"


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_sha256", "cd" * 32), ("seed", 1), ("settings", {"wave": {"steps": 4}}), ("teacher_sha256", "ef" * 32)],
)
def test_another_configuration_is_refused_by_name(tmp_path: Path, key: str, value: Any) -> None:
    write_all(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(
        InputError, match=f"made with another {key} .*another output file, or delete this one"
    ) as refusal:
        open_file(tmp_path / "a.h5", identity={**IDENTITY, key: value})
    assert len(str(refusal.value).splitlines()) == 1
    assert (tmp_path / "a.h5").read_bytes() == before, "a refused file was changed"
    write_all(tmp_path / "a.h5")  # the refusal has let go of the file


# Files that are something else ------------------------------------------------------------------------------------


def _random_bytes(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def _html(path: Path) -> None:
    path.write_text("<!doctype html><html><body>404</body></html>")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut_short(path: Path) -> None:
    write_all(path)
    os.truncate(path, path.stat().st_size // 2)


def _foreign(path: Path, **attributes: Any) -> None:
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(3)
        file.attrs.update(attributes)


def _of_version(path: Path, version: int) -> None:
    write_all(path)
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = version


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_random_bytes, "is not a certificate file: it is damaged, or a file of another kind($|;)"),
        (_html, "is not a certificate file: it is damaged, or a file of another kind($|;)"),
        (_empty, "is not a certificate file: it is (empty|damaged)"),
        (_cut_short, "is not a certificate file: it is damaged, or a file of another kind($|;)"),
        (Path.mkdir, "certificate file|is a folder: name a file in it"),
        (_foreign, "is an HDF5 file but not a certificate file"),
        (lambda path: _foreign(path, format="netCDF"), "is an HDF5 file but not a certificate file"),
        (lambda path: _foreign(path, format=[1, 2]), "is an HDF5 file but not a certificate file"),
        (lambda path: _foreign(path, format=np.bytes_(store.FORMAT)), "has format version None"),
        (lambda path: _of_version(path, 3), "has format version 3, this certkd reads 4: certify again"),
        (lambda path: _of_version(path, 5), "has format version 5, this certkd reads 4: update certkd"),
    ],
    ids=["random", "html", "empty", "cut", "folder", "foreign", "netcdf", "array", "no-version", "older", "newer"],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "a.h5"
    make(path)
    before = path.read_bytes() if path.is_file() else None
    for use in (lambda: reader.read(path), lambda: open_file(path), lambda: check_output(path)):
        with pytest.raises(InputError, match=message) as refusal:
            use()
        assert str(path) in str(refusal.value), "the message must name the file"
        assert len(str(refusal.value).splitlines()) == 1
    assert before is None or path.read_bytes() == before, "a file of someone else was changed"


def test_a_missing_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no certificate file at .*missing\.h5"):
        reader.read(tmp_path / "missing.h5")


# Places that cannot be written ------------------------------------------------------------------------------------


def test_folders_are_made(tmp_path: Path) -> None:
    write_all(tmp_path / "new" / "folder" / "a.h5")
    assert os.listdir(tmp_path / "new" / "folder") == ["a.h5"], "something was left beside the file"


@pytest.mark.parametrize("name", ["file/a.h5", "file/below/a.h5", "x" * 300, "x" * 250, "a\0b"])
def test_an_impossible_path_is_one_clear_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("a regular file")
    with pytest.raises(InputError, match=r"cannot write|is not a file name") as refusal:
        open_file(tmp_path / name)
    assert len(str(refusal.value).splitlines()) == 1
    with pytest.raises(InputError, match=r"cannot write|is not a file name|ends in"):
        check_output(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"], "something was left behind"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
@pytest.mark.parametrize("name", ["a.txt", "a", "a.h5.bak"])
def test_a_name_that_is_no_certificate_files_is_refused_with_the_known_ones(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=rf"{name}: the name of a certificate file ends in \.h5 or \.hdf5$"):
        check_output(tmp_path / name)


def test_a_place_is_checked_without_a_trace(tmp_path: Path) -> None:
    check_output(tmp_path / "new" / "a.h5")
    check_output(tmp_path / "A.HDF5")
    assert not os.listdir(tmp_path), "a check made something"
    with open_file(tmp_path / "a.h5"):
        pass
    before = (tmp_path / "a.h5").read_bytes()
    check_output(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_bytes() == before, "a check changed the file"


def test_a_folder_that_takes_no_files() -> None:
    with pytest.raises(InputError, match=r"cannot write /proc/a\.h5: .*choose an output folder that can be written"):
        open_file(Path("/proc/a.h5"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; the read-only mount covers it")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"cannot write .*Permission denied; choose an output folder"):
        open_file(tmp_path / "closed" / "a.h5")


def _mount(folder: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount(folder, "size=300k")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_file_system(disk: Path) -> None:
    write_all(disk / "a.h5")
    _mount(disk, "remount,ro")
    for path in (disk / "a.h5", disk / "b.h5"):
        with pytest.raises(InputError, match=r"cannot write .*Read-only file system; choose an output folder"):
            open_file(path)
    assert len(assert_whole(reader.read(disk / "a.h5")["wave"])) == 40, "finished rows must stay readable"


# Full disks -------------------------------------------------------------------------------------------------------

FULL = 400  # pixels of an image: 1.6 kB a row


def _until_full(path: Path) -> str:
    """Write rows with images until that fails; the message."""
    with pytest.raises(InputError) as refusal, open_file(path, 400, pixels=FULL) as file:
        file.note("wave", "engine", "auto-lirpa")
        write_pending(file, 5, FULL)
    return str(refusal.value)


def _assert_kept_and_finished_later(path: Path, make_room: Callable[[], object]) -> None:
    done = assert_whole(reader.read(path)["wave"])
    assert 5 <= len(done) < 400, f"{len(done)} rows before the disk was full: the test is of no use"
    assert_images(path, done, FULL)
    assert reader.read(path)["wave"].attributes["engine"] == "auto-lirpa"
    make_room()
    with open_file(path, 400, pixels=FULL) as file:
        assert len(file.pending("wave")) == 400 - len(done), "finished rows were lost"
        write_pending(file, 5, FULL)
    assert len(assert_whole(reader.read(path)["wave"])) == 400
    assert_images(path, np.arange(400), FULL)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk(disk: Path) -> None:
    message = _until_full(disk / "a.h5")
    assert message.startswith(f"cannot write {disk / 'a.h5'}: No space left on device; finished rows are kept"), message
    assert _until_full(disk / "a.h5") == message, "a second try on the full disk says the same"
    _assert_kept_and_finished_later(disk / "a.h5", lambda: _mount(disk, "remount,size=4m"))


def test_a_full_disk_while_a_file_is_created(disk: Path) -> None:
    with pytest.raises(InputError, match="No space left on device") as refusal:
        open_file(disk / "a.h5", samples=20_000)
    assert len(str(refusal.value).splitlines()) == 1
    assert os.listdir(disk) == [], "a file that could not be created was left behind"
    _mount(disk, "remount,size=9m")
    write_all(disk / "a.h5", samples=20_000, batch=5000)


def _at_the_limit(path: Path, answer: Connection) -> None:
    with open_file(path, 400, pixels=FULL):
        pass
    with h5py.File(path) as file:
        image_start = file["wave"]["image"].id.get_offset()
    resource.setrlimit(resource.RLIMIT_FSIZE, (image_start + 100_000, resource.RLIM_INFINITY))
    answer.send(_until_full(path))


@pytest.mark.slow
def test_a_quota_on_the_size_of_a_file(tmp_path: Path) -> None:
    """Like a full disk, where nothing can be mounted: Python ignores the signal, the write fails with EFBIG."""
    message = in_process(_at_the_limit, tmp_path / "a.h5")
    assert message.startswith(f"cannot write {tmp_path / 'a.h5'}: File too large; finished rows are kept"), message
    _assert_kept_and_finished_later(tmp_path / "a.h5", lambda: None)


# Several processes ------------------------------------------------------------------------------------------------


def start(target: Callable[..., None], *arguments: Any) -> tuple[BaseProcess, Connection]:
    """Run ``target(*arguments, connection)`` in a new process."""
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=target, args=(*arguments, there), daemon=True)
    process.start()
    there.close()
    return process, here


def in_process(target: Callable[..., None], *arguments: Any) -> Any:
    """What ``target(*arguments, connection)`` sends from a new process."""
    process, connection = start(target, *arguments)
    answer = connection.recv()
    process.join()
    assert process.exitcode == 0, f"the other process ended with {process.exitcode}"
    return answer


def _write_on_request(path: Path, connection: Connection) -> None:
    """Hold the file; at every message write the next row; end at None."""
    with open_file(path) as file:
        connection.send("open")
        for row in range(40):
            if connection.recv() is None:
                return
            file.write("wave", np.array([row]), values_of(np.array([row])))
            connection.send("written")


@pytest.fixture
def writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """Another process that holds ``a.h5`` and writes one row per message."""
    process, connection = start(_write_on_request, tmp_path / "a.h5")
    assert connection.recv() == "open"
    yield connection
    if process.is_alive():
        connection.send(None)
    process.join()
    assert process.exitcode == 0, "the writer was disturbed"


def _next_row(writer: Connection) -> None:
    writer.send("write")
    assert writer.recv() == "written"


@pytest.mark.skipif(
    os.environ.get("HDF5_USE_FILE_LOCKING", "").upper() in ("FALSE", "0"), reason="HDF5's file locks are switched off"
)
def test_a_second_writer_is_refused(tmp_path: Path, writer: Connection) -> None:
    _next_row(writer)
    with pytest.raises(InputError, match=r"a\.h5 is being written by another process: wait for it"):
        open_file(tmp_path / "a.h5")
    _next_row(writer)
    assert assert_whole(reader.read(tmp_path / "a.h5")["wave"]).tolist() == [0, 1], (
        "the refused writer changed the file"
    )


def test_a_file_can_be_read_while_it_is_written(tmp_path: Path, writer: Connection) -> None:
    for done in range(1, 6):
        _next_row(writer)
        assert assert_whole(reader.read(tmp_path / "a.h5")["wave"]).tolist() == list(range(done))


def test_rows_read_while_they_are_written_are_whole(
    tmp_path: Path, writer: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst timing: a row is finished between any two columns that the reader reads."""
    original = h5py.Dataset.__getitem__

    def row_by_row(data: h5py.Dataset, selection: Any) -> Any:
        values = original(data, selection)
        _next_row(writer)
        return values

    _next_row(writer)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", row_by_row)
    rows = reader.read(tmp_path / "a.h5")["wave"]
    monkeypatch.undo()
    assert len(assert_whole(rows)) >= 1
    assert reader.read(tmp_path / "a.h5")["wave"].count(Status.CERTIFIED) > 5, "nothing was written while reading"


def test_of_two_creators_one_wins(tmp_path: Path) -> None:
    """Both start at once: one writes, the other is refused, and the file is whole."""
    outcomes: list[str] = []
    barrier = threading.Barrier(2)

    def race(process: tuple[BaseProcess, Connection]) -> None:
        barrier.wait()
        process[1].send("go")
        outcomes.append(process[1].recv())
        process[1].send("end")
        process[0].join()

    threads = [threading.Thread(target=race, args=(start(_create_once, tmp_path / "a.h5"),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) in (["refused", "written"], ["written", "written"]), outcomes
    assert len(assert_whole(reader.read(tmp_path / "a.h5")["wave"])) == 40
    assert os.listdir(tmp_path) == ["a.h5"], "something was left beside the file"


def _create_once(path: Path, connection: Connection) -> None:
    connection.recv()
    try:
        write_all(path)
        connection.send("written")
    except InputError as refusal:
        connection.send("refused" if "another process" in str(refusal) else str(refusal))
    connection.recv()


def equal_but_seconds(one: Certificates, two: Certificates, methods: Sequence[str]) -> None:
    """Bit for bit the same rows; only the time they took may differ."""
    for method in methods:
        assert one[method].columns.keys() == two[method].columns.keys()
        for name in one[method].columns.keys() - {"seconds"}:
            same = np.array_equal(one[method][name], two[method][name], equal_nan=one[method][name].dtype.kind == "f")
            assert same, f"{method}: column {name} differs"


def test_a_file_that_is_removed_while_it_is_written_is_missed(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"a\.h5 was removed while it was written"),
        open_file(tmp_path / "a.h5") as file,
    ):
        (tmp_path / "a.h5").unlink()
        write_pending(file, 20)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"eps_text": "0.1"}, "another eps (0.2, now 0.1)"),
        ({"norm": "linf", "seed": 4}, "another seed (3, now 4)"),
        ({"norm": "linf", "eps_text": "0.2", "seed": 3}, ""),
        ({}, ""),
    ],
)
def test_settings_are_compared_before_anything_is_computed(asked: dict, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    check_output(path, asked=asked)  # there is no file yet
    write_all(path)
    with h5py.File(path, "r+") as file:
        identity = {"norm": "linf", "eps_text": "0.2", "seed": 3, "other": 1}
        file.attrs["identity"] = np.bytes_(json.dumps(identity))
    check_output(path)
    if not said:
        return check_output(path, asked=asked)
    with pytest.raises(InputError) as refusal:
        check_output(path, asked=asked)
    assert said in str(refusal.value) and "--overwrite" in str(refusal.value)
    check_output(path, asked=asked, anew=True)
