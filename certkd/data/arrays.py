"""Read ``.npz`` archives that may come from anybody: no pickles, and sizes are known before anything is unpacked."""

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


def read_arrays(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray]:
    """Read arrays of numbers from an archive; others in it are not looked at.

    Raises:
        InputError: not a plain archive, one of the arrays is missing, holds objects, has another size than its header
            says, or unpacks to many times the file's size.
    """
    with loading(path, "a plain .npz archive"):
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
        shape, _, dtype = _header(file)
        start = file.tell()
        size = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "biuf" or any(length < 0 for length in shape) or start + size != entry.file_size:
            raise InputError(
                f"{path} is not a plain .npz archive: {quoted(entry.filename)} has {entry.file_size - start} bytes for "
                f"the shape {quoted(shape)} of {dtype}"
            )
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"its format is {version}")
    return read[version](file, max_header_size=LONGEST_HEADER)
