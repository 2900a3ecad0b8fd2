"""Read certificate files."""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from verifiers.core.errors import InputError
from verifiers.results.hdf5 import check_format, notes_of, plain, reason
from verifiers.results.rows import Certificates, MethodRows


def read(path: str | os.PathLike[str]) -> Certificates:
    """Read a certificate file, finished or not, also while another process writes it.

    Example:
        >>> certificates = certkd.read_certificates("student.h5")
        >>> certificates.crown.radius.mean()

    Raises:
        InputError: missing, not HDF5, not a certificate file, or of another format version.
    """
    path = Path(path)
    if path.is_dir():
        example = next((f" in it, like {file}" for file in sorted(path.glob("*.h5"))), "")
        raise InputError(f"{path} is a folder: give a certificate file{example}")
    if not path.is_file():
        raise InputError(f"no certificate file at {path}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            check_format(file, path)
            return contents(file, path)
    except OSError as problem:
        raise InputError(f"{path} is not a certificate file: {reason(problem)}") from None


def contents(file: h5py.File, path: Path) -> Certificates:
    """Read an open certificate file."""
    methods = {}
    for name, group in file.items():
        status = group["status"][:]  # first: all other columns of a row with a status were written before it
        columns = {
            column: status if column == "status" else data[:] for column, data in group.items() if data.ndim == 1
        }
        attributes = {key: value for key, value in plain(group.attrs).items() if key != "notes"}
        methods[name] = MethodRows(name, {**attributes, **notes_of(group)}, columns)
    order = list(file.attrs["methods"])
    return Certificates(plain(file.attrs), {name: methods[name] for name in order}, str(path))


def read_images(path: str | os.PathLike[str], method: str, column: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Read a column of images or votes, such as ``read_images("s.h5", "pgd", "counterexample", [3])``.

    The values come in the order of ``rows``. Rows without one are all zero; the method's other columns say which.
    """
    ascending, place = np.unique(np.asarray(rows, int), return_inverse=True)
    with h5py.File(path, "r", locking=False) as file:
        return file[method][column][ascending][place]
