"""Read certificate files."""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from verifiers.core.errors import InputError
from verifiers.results.hdf5 import _check_format, _notes, _plain, _reason
from verifiers.results.rows import Certificates, MethodRows


def read(path: str | os.PathLike[str]) -> Certificates:
    """Read a certificate file, finished or not, also while another process writes it.

    Raises:
        InputError: missing, not HDF5, not a certificate file, or of a newer format version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no certificate file at {path}")
    try:
        with h5py.File(path, "r", locking=False) as file:
            _check_format(file, path)
            return _contents(file, path)
    except OSError as problem:
        raise InputError(f"{path} is not a certificate file: {_reason(problem)}") from None


def _contents(file: h5py.File, path: Path) -> Certificates:
    methods = {}
    for name, group in file.items():
        status = group["status"][:]  # first: all other columns of a row with a status were written before it
        columns = {
            column: status if column == "status" else data[:] for column, data in group.items() if data.ndim == 1
        }
        attributes = {key: value for key, value in _plain(group.attrs).items() if key != "notes"}
        methods[name] = MethodRows(name, {**attributes, **_notes(group)}, columns)
    order = list(file.attrs["methods"])
    return Certificates(_plain(file.attrs), {name: methods[name] for name in order}, str(path))


def read_images(path: str | os.PathLike[str], method: str, column: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Images of a per-pixel column in the order asked, such as ``read_images("s.h5", "pgd", "counterexample", [3])``.

    Rows that have none (see the method's other columns) are all zero.
    """
    ascending, place = np.unique(np.asarray(rows, int), return_inverse=True)
    with h5py.File(path, "r", locking=False) as file:
        return file[method][column][ascending][place]
