"""Write whole files, and recognise files that are not what they should be."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from verifiers.core.errors import InputError, one_line

#: The least space that a disk gives a file, in bytes.
BLOCK = 4096
#: Ends of the names of files that hold a network.
NETWORKS = (".pt", ".pth", ".safetensors", ".bin", ".ckpt", ".onnx")

#: Files of text that are given beside networks.
TEXTS = ("VNN-LIB property", "list of instances")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the same folder, then rename it: nobody ever sees half a file.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except InputError:
        raise
    except Exception as error:
        known = error.strerror if isinstance(error, OSError) else _full(path.parent)
        if known is None and not isinstance(error, OSError | RuntimeError):
            raise
        why = "its folder is a file" if isinstance(error, FileExistsError) else known or one_line(error)
        raise InputError(f"cannot write {path}: {why}; choose another place") from None
    finally:
        with suppress(OSError):  # where it cannot be removed it could not be made
            temporary.unlink()


def _full(folder: Path) -> str | None:
    """Say so if a folder's disk is full: torch and Matplotlib then fail with errors of their own."""
    with suppress(OSError):
        if shutil.disk_usage(folder).free < BLOCK:
            return os.strerror(errno.ENOSPC)
    return None


def sniff(path: Path, what: str) -> bytes:
    """Return the first bytes of a file, without leading blanks.

    Args:
        what: the kind of file that is expected, for messages.

    Raises:
        InputError: the file is missing, empty, a folder, a web page, a Git LFS pointer or plainly of another kind.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a {what}: give a file in it")
    if not path.is_file():
        raise InputError(f"no such {what}: {path}")
    with open(path, "rb") as file:
        head = file.read(512).lstrip()
    if not head:
        raise InputError(f"{path} is empty")
    if head[:1] == b"<" and any(word in head.lower() for word in (b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(f"{path} is an HTML page, not a {what}: the download probably met a login or error page")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a Git LFS pointer, not the file itself: run 'git lfs pull'")
    other = _other_kind(path, head, what)
    if other is not None:
        raise InputError(f"{path} is {other}")
    return head


def _other_kind(path: Path, head: bytes, what: str) -> str | None:
    """Name the kind of a file that is plainly not the expected one, and what to do; None for all others."""
    if head.startswith(b"\x89HDF"):
        wanted = "network" if what in ("checkpoint", "ONNX file") else what
        return f"an HDF5 file, as certificates are, not a {wanted}: 'certkd show' prints those"
    if what == "checkpoint" and path.suffix == ".py":
        return (
            f"Python code, not a checkpoint: give its weights, and name its class as their architecture ({path}:Class)"
        )
    if what in ("ONNX file", *TEXTS) and head.startswith((b"PK", b"\x80")):
        return f"a checkpoint, not a{'n' if what[0] == 'O' else ''} {what}: 'certkd export' writes an ONNX file"
    if what != "ONNX file" and ".onnx" in path.suffixes:
        return f"an ONNX file, not a {what}: files of networks come first"
    return None


def delete_outputs(folder: Path, mark: str, outputs: tuple[str, ...]) -> None:
    """Delete earlier outputs in a folder, and nothing else.

    Args:
        mark: a file that marks the folder as an output of certkd.
        outputs: the files and folders to delete.

    Raises:
        InputError: the folder holds other things and no ``mark``, or something cannot be deleted.
    """
    try:
        if not (folder / mark).exists():
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder} is no output of certkd and is not overwritten: give another out")
            return
        for name in outputs:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot delete {folder}: {error.strerror}") from None


def make_folder(folder: Path) -> None:
    """Make a folder that can be written.

    Raises:
        InputError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}: give another out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {folder}: no permission: give another out")
