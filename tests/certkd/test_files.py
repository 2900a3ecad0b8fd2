"""Whole files or none; strange files by name; only our own outputs are deleted."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from certkd.files import delete_outputs, make_folder, sniff, write_whole
from verifiers.core.errors import InputError


def test_a_file_is_whole_when_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"

    def write(temporary: Path) -> None:
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("whole")

    write_whole(path, write)
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("pipe\nbroken")])
def test_a_write_that_fails_leaves_the_old_file(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(InputError, match=r"^cannot write .*a\.txt: .*(space left|pipe broken)"):
        write_whole(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 64 vs 0"), AttributeError("pos")])
def test_a_full_disk_is_the_reason_whatever_a_library_says(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(temporary: Path) -> None:
        raise error

    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 100, 100))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: No space left on device; choose another place$"):
        write_whole(tmp_path / "a.txt", write)


def test_what_a_writer_refuses_is_said_in_its_own_words(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        raise InputError("no such layer")

    with pytest.raises(InputError, match=r"^no such layer$"):
        write_whole(tmp_path / "a.txt", write)


def test_other_errors_of_a_writer_are_not_hidden(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_whole(tmp_path / "a.txt", write)
    assert not os.listdir(tmp_path), "half a file is left"


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*a/b\.txt: its folder is a file; choose another place$"):
        write_whole(tmp_path / "a" / "b.txt", lambda temporary: temporary.write_text(""))


STRANGE = {
    b"": "is empty",
    b" \n\t": "is empty",
    b"\n <!DOCTYPE html><title>login</title>": "is an HTML page, not a checkpoint",
    b"<?xml version='1.0'?><Error>": "is an HTML page, not a checkpoint",
    b"<HTML>": "is an HTML page, not a checkpoint",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0": "is a Git LFS pointer, not the file itself",
}


@pytest.mark.parametrize("content", STRANGE, ids=lambda content: repr(content[:12]))
def test_a_strange_file_is_recognised(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=STRANGE[content]) as caught:
        sniff(path, "checkpoint")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(1000), b"<5 plain bytes", b"{}"])
def test_other_files_begin_with_their_first_bytes(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(b"  " + content)
    assert sniff(path, "checkpoint") == content[:510]


KINDS = [
    (
        "a.h5",
        b"\x89HDF\r\n",
        "checkpoint",
        "an HDF5 file, as certificates are, not a network: 'certkd show' prints those",
    ),
    ("a.h5", b"\x89HDF\r\n", "VNN-LIB property", "an HDF5 file, as certificates are, not a VNN-LIB property"),
    ("net.py", b"import torch", "checkpoint", "Python code, not a checkpoint: give its weights, and name its class"),
    ("net.pt", b"PK\x03\x04", "ONNX file", "a checkpoint, not an ONNX file: 'certkd export' writes an ONNX file"),
    ("net.onnx", b"\x08\x07", "VNN-LIB property", "an ONNX file, not a VNN-LIB property: files of networks come first"),
    ("net.onnx.gz", b"\x1f\x8b", "table of results", "an ONNX file, not a table of results"),
]


@pytest.mark.parametrize(("name", "content", "what", "told"), KINDS)
def test_a_file_of_another_kind_is_named(name: str, content: bytes, what: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        sniff(path, what)
    assert f"{path} is {told}" in str(caught.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a folder, not a checkpoint: give a file in it"):
        sniff(tmp_path, "checkpoint")
    with pytest.raises(InputError, match=r"^no such checkpoint: .*none\.pt$"):
        sniff(tmp_path / "none.pt", "checkpoint")


def outputs(folder: Path) -> None:
    """A folder with two outputs and somebody's notes."""
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "summary.json").write_text("{}")
    (folder / "best.pt").write_text("")
    (folder / "notes.txt").write_text("mine")


def test_nothing_but_outputs_is_deleted(tmp_path: Path) -> None:
    outputs(tmp_path)
    delete_outputs(tmp_path, "best.pt", ("report", "best.pt", "last.pt"))
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_folder_without_the_mark_is_left_alone(tmp_path: Path) -> None:
    outputs(tmp_path)
    with pytest.raises(InputError, match=r"is no output of certkd and is not overwritten: give another out"):
        delete_outputs(tmp_path, "last.pt", ("report", "best.pt"))
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "notes.txt", "report"]
    delete_outputs(tmp_path / "absent", "last.pt", ("report",))


def test_a_link_is_deleted_and_not_what_it_points_to(tmp_path: Path) -> None:
    outputs(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "best.pt").write_text("")
    (tmp_path / "ours" / "report").symlink_to(tmp_path / "theirs")
    delete_outputs(tmp_path / "ours", "best.pt", ("report", "best.pt"))
    assert not os.listdir(tmp_path / "ours") and len(os.listdir(tmp_path / "theirs")) == 3


def test_a_folder_is_made_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file: File exists: give another out"):
        make_folder(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(InputError, match=r"cannot write .*b: no permission: give another out"):
        make_folder(tmp_path / "a" / "b")
