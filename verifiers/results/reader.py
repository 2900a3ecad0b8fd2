"""Read certificate files."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from verifiers.core.columns import Column
from verifiers.core.errors import InputError, loading
from verifiers.results.hdf5 import check_format
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.schema import TABLES, attributes_of, check, check_rows, notes_of

#: What a file must be, in messages about one that is not.
KIND = "a certificate file"
#: Why a file is none, in the place of HDF5's own words.
DAMAGED = "it is damaged, or a file of another kind"


def read(path: str | os.PathLike[str]) -> Certificates:
    """Read a certificate file, finished or not, also while another process writes it.

    Example:
        >>> certificates = certkd.read_certificates("student.h5")
        >>> certificates.crown.radius.mean()

    Raises:
        InputError: missing, not HDF5, not a certificate file, of another format version, or not as certkd writes it.
    """
    with opened(path) as file, loading(path, KIND, why=DAMAGED):
        return contents(file, Path(path))


@contextmanager
def opened(path: str | os.PathLike[str], tables: Mapping[str, tuple[Column, ...]] = TABLES) -> Iterator[h5py.File]:
    """Open a certificate file for reading, after every member was checked.

    Args:
        path: of the file.
        tables: the columns of known methods, after the common ones.

    Raises:
        InputError: as ``read``.
    """
    path = Path(path)
    with loading(path, KIND, why=DAMAGED):
        if path.is_dir():
            example = next((f" in it, like {file}" for file in sorted(path.glob("*.h5"))), "")
            raise InputError(f"{path} is a folder: give a certificate file{example}")
        if not path.is_file():
            raise InputError(f"no certificate file at {path}")
        with open(path, "rb") as raw:
            if raw.read(2) == b"PK":
                raise InputError(f"{path} is not a certificate file: it is a checkpoint or another archive")
        file = h5py.File(path, "r", locking=False)
    with file:
        with loading(path, KIND, why=DAMAGED):
            check_format(file, path)
            check(file, path, tables)
        yield file


def contents(file: h5py.File, path: Path) -> Certificates:
    """Read an open certificate file."""
    facts = attributes_of(file, path)
    methods = {}
    for name in facts["methods"]:
        group = file[name]
        status = group["status"][:]  # first: all other columns of a row with a status were written before it
        columns = {
            column: status if column == "status" else data[:] for column, data in group.items() if data.ndim == 1
        }
        stored = attributes_of(group, f"{path}: {name}")
        attributes = {**stored, **notes_of(group)}
        del attributes["notes"]
        check_rows(facts, attributes, columns, f"{path}: {name}")
        methods[name] = MethodRows(name, attributes, columns, stored)
    return Certificates(facts, methods, str(path))


def read_images(path: str | os.PathLike[str], method: str, column: str, rows: Sequence[int] | np.ndarray) -> np.ndarray:
    """Read a column of images or votes, such as ``read_images("s.h5", "pgd", "counterexample", [3])``.

    The values come in the order of ``rows``. Rows without one are all zero; the method's other columns say which.
    """
    ascending, place = np.unique(np.asarray(rows, int), return_inverse=True)
    with opened(path) as file:
        return file[method][column][ascending][place]


def counterexamples(
    path: str | os.PathLike[str], indices: Sequence[int] | np.ndarray, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Read the counterexamples that each method of a file found for samples, by their indices; nan without one.

    Raises:
        InputError: as ``read``, or its images have another shape.
    """
    found, wanted = [], np.asarray(indices)
    with opened(path) as file, loading(Path(path), KIND, why=DAMAGED):
        for name in contents(file, Path(path)).methods:
            group = file[name]
            if "counterexample" not in group:
                continue
            stored = group["counterexample"]
            if stored.shape[1:] != shape:
                raise InputError(f"{path}: its counterexamples have shape {stored.shape[1:]}, the images {shape}")
            rows = np.flatnonzero(np.isin(group["index"][:], wanted) & np.isfinite(group["distance"][:]))
            place = {int(index): image for index, image in zip(group["index"][:][rows], stored[rows], strict=True)}
            images = np.full((len(wanted), *shape), np.nan, "float32")
            for image, index in zip(images, wanted, strict=True):
                image[:] = place.get(int(index), np.nan)
            found.append(images)
    return found
