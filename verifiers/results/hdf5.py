"""Versions of the certificate file, access to it, and the errors of HDF5 in plain words."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from verifiers.core.errors import InputError, one_line, quoted
from verifiers.results.lock import hdf5_locks
from verifiers.results.schema import FORMAT, FORMAT_VERSION

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


def put(column: h5py.Dataset, rows: np.ndarray, values: np.ndarray) -> None:
    """Write the values of some rows, in one piece where the rows are consecutive."""
    if len(rows):
        consecutive = rows[-1] - rows[0] == len(rows) - 1
        column[slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows] = values


def has_value(values: np.ndarray) -> np.ndarray:
    """Mark the rows to write: all, except images that are all nan, which stay holes."""
    if values.ndim == 1 or values.dtype.kind != "f":
        return np.ones(len(values), bool)
    return ~np.isnan(values.reshape(len(values), -1)).all(axis=1)


def check_format(file: h5py.File, path: Path) -> None:
    """Refuse files of another kind or version; looks at two attributes, and reads them only where they are small.

    Raises:
        InputError: another HDF5 file, or a certificate file of an older or newer certkd.
    """
    kind, version = (_small(file, name) for name in ("format", "format_version"))
    older = isinstance(version, int) and version < FORMAT_VERSION
    if kind != FORMAT.encode() and not (older and kind is not None):
        raise InputError(f"{path} is an HDF5 file but not a certificate file: it has no format={FORMAT!r}")
    if version != FORMAT_VERSION:
        what_to_do = "certify again" if older else "update certkd"
        raise InputError(
            f"{path} has format version {quoted(version)}, this certkd reads {FORMAT_VERSION}: {what_to_do}"
        )


def _small(file: h5py.File, name: str) -> Any:
    """A whole number or a text of fixed length; "" for any other attribute, None without one."""
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    kind, single = attribute.get_type(), attribute.shape == ()
    known = isinstance(kind, h5py.h5t.TypeIntegerID | h5py.h5t.TypeStringID) and kind.get_size() <= len(FORMAT)
    if not (known and single) or (isinstance(kind, h5py.h5t.TypeStringID) and kind.is_variable_str()):
        return ""
    return file.attrs[name].item()


def writing_access() -> h5py.h5p.PropFAID:
    """Unbuffered, because HDF5 writes its buffer when it likes, and h5py drops the error when that fails.

    The earliest format, whose headers have no checksum: a half-written note leaves them readable.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
    access.set_file_locking(hdf5_locks(), True)
    access.set_sieve_buf_size(0)
    access.set_libver_bounds(h5py.h5f.LIBVER_EARLIEST, h5py.h5f.LIBVER_LATEST)
    return access


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn failed writes into ``InputError``; a lock that another process has is passed on."""
    try:
        yield
    except BlockingIOError:
        raise
    except (OSError, RuntimeError, ValueError) as problem:  # h5py makes some failed writes a ValueError
        if isinstance(problem, ValueError) and "write failed" not in str(problem):
            raise
        raise InputError(cannot_write(path, problem)) from None


def cannot_write(path: Path, problem: Exception) -> str:
    """Say why a file could not be written, and what to do."""
    hint = "finished rows are kept; free some space or choose another output folder, then run the same command again"
    if getattr(problem, "errno", None) not in (None, *_NO_SPACE):
        hint = "choose an output folder that can be written"
    return f"cannot write {path}: {reason(problem)}; {hint}"


def reason(problem: Exception) -> str:
    """The operating system's words for an error of HDF5, where it names one."""
    number = getattr(problem, "errno", None)
    text = one_line(problem, None)
    if number is None:
        known = [c for c in _NO_SPACE if os.strerror(c) in text]
        number = known[0] if known else None
    return os.strerror(number) if number else text[:200]
