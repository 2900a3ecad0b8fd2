"""The schema of the certificate file."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from verifiers.core.errors import InputError, one_line

FORMAT = "certkd-certificates"


FORMAT_VERSION = 1


#: Room for a method's notes, in bytes, and for each of them, in characters. The notes are one attribute of fixed size,
#: overwritten in place: a new attribute moves parts of the file, and a kill in between makes it unreadable.
NOTES_BYTES, NOTE_LENGTH = 8192, 1000


_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


def _notes(group: h5py.Group) -> dict[str, str]:
    return dict(json.loads(bytes(group.attrs["notes"]).rstrip(b"\0")))


def _put(column: h5py.Dataset, rows: np.ndarray, values: np.ndarray) -> None:
    if len(rows):
        consecutive = rows[-1] - rows[0] == len(rows) - 1
        column[slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows] = values


def _has_value(values: np.ndarray) -> np.ndarray:
    """Which rows to write: all, except images that are all nan, which stay holes."""
    if values.ndim == 1 or values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return ~np.isnan(values.reshape(len(values), -1)).all(axis=1)


def _plain(attributes: h5py.AttributeManager) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in attributes.items()}


def _check_format(file: h5py.File, path: Path) -> None:
    attributes = _plain(file.attrs)
    if str(attributes.get("format")) != FORMAT:
        raise InputError(f"{path} is an HDF5 file but not a certificate file: it has no format={FORMAT!r}")
    version = attributes.get("format_version")
    if str(version) != str(FORMAT_VERSION):
        raise InputError(f"{path} has format version {version}, this certkd reads {FORMAT_VERSION}: update certkd")


def _access() -> h5py.h5p.PropFAID:
    """Locked; unbuffered, because HDF5 writes its buffer when it likes, and h5py drops the error when that fails.

    The earliest format, whose headers have no checksum: a half-written note leaves them readable.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(True, False)
    access.set_sieve_buf_size(0)
    access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST)
    return access


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as problem:  # h5py makes some failed writes a ValueError
        if isinstance(problem, ValueError) and "write failed" not in str(problem):
            raise
        raise InputError(_cannot_write(path, problem)) from None


def _cannot_write(path: Path, problem: Exception) -> str:
    hint = "finished rows are kept; free some space or give --out another folder, then run the same command again"
    if getattr(problem, "errno", None) not in (None, *_NO_SPACE):
        hint = "give --out a folder that can be written"
    return f"cannot write {path}: {_reason(problem)}; {hint}"


def _reason(problem: Exception) -> str:
    number = getattr(problem, "errno", None)
    text = one_line(problem, None)
    if number is None:
        known = [c for c in _NO_SPACE if os.strerror(c) in text]
        number = known[0] if known else None
    return os.strerror(number) if number else text[:200]
