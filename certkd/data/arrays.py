"""Read ``.npz`` and ``.npy`` files that may come from anybody: no pickles, and sizes are known before unpacking."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.files import check_regular

#: An archive of more bytes than this must not be smaller than its content by more than the factor.
SMALL, FACTOR = 2**28, 50
#: The most bytes before an array's values.
LONGEST_HEADER = 20_000


def names_in(path: Path) -> list[str]:
    """Return the names of an archive's entries.

    Raises:
        InputError: not a plain archive.
    """
    with loading(path, "a plain .npz file of numbers"):
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]


def read_array(path: Path) -> np.ndarray:
    """Map a ``.npy`` file of numbers into memory.

    Raises:
        InputError: not a plain array, or of another size than its header says.
    """
    with loading(path, "a plain .npy file of numbers"):
        check_regular(path)
        with open(path, "rb") as file:
            _check_header(file, path.stat().st_size, path, path.name)
        return np.load(path, allow_pickle=False, mmap_mode="r")


def read_arrays(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Read arrays of numbers from an archive; others in it are not looked at.

    Raises:
        InputError: not a plain archive, one of the arrays is missing, holds objects, has another size than its header
            says, or unpacks to many times the file's size.
    """
    with loading(path, "a plain .npz file of numbers"):
        check_regular(path)
        with zipfile.ZipFile(path) as archive:
            there = [name.removesuffix(".npy") for name in archive.namelist()]
            if not set(wanted) <= set(there):
                has = ", ".join(there[:20]) or "nothing"
                raise InputError(f"{path} must hold {', '.join(wanted[:-1])} and {wanted[-1]}; it has {has[:200]}")
            entries = [archive.getinfo(f"{name}.npy") for name in wanted]
            size = sum(entry.file_size for entry in entries)
            if size > max(SMALL, FACTOR * path.stat().st_size):
                raise InputError(f"{path} would unpack to {size} bytes, {size // path.stat().st_size} times its size")
            return {name: _array(archive, entry, path) for name, entry in zip(wanted, entries, strict=True)}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> np.ndarray:
    with archive.open(entry) as file:
        _check_header(file, entry.file_size, path, entry.filename)
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _check_header(file: Any, size: int, path: Path, name: str) -> None:
    """Refuse an array of anything but numbers, and one of another size than its header says."""
    shape, _, dtype = _header(file)
    content, refused = size - file.tell(), f"{path} is not a plain {path.suffix} file of numbers: {quoted(name)}"
    if dtype.kind in "US":
        raise InputError(f"{refused} holds text: number the classes 0, 1, 2, ...")
    if dtype.kind not in "biuf" or any(length < 0 for length in shape) or math.prod(shape) * dtype.itemsize != content:
        raise InputError(f"{refused} has {content} bytes for the shape {quoted(shape)} of {dtype}")


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"its format is {version}")
    return read[version](file, max_header_size=LONGEST_HEADER)
