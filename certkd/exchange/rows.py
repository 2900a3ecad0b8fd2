"""Certificates for other programs: rows as CSV or JSON, counterexamples as arrays.

Array columns and images are read in blocks, so that a file of any size can be exported; a file is written whole or not
at all. Rows without an answer yet are left out.
"""

import csv
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int

from certkd.files import write_whole
from verifiers.core.columns import COMMON_COLUMNS
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.core.table import counted
from verifiers.methods.registry import find
from verifiers.results.reader import opened, read
from verifiers.results.rows import Certificates, MethodRows

#: A row's array goes into CSV, a column for each entry, when it has no more entries than this.
WIDEST = 20
#: Rows of an array column that are read at a time.
BLOCK = 256
IMAGE = "counterexample"


def is_folder(out: str | Path) -> bool:
    """Return whether a path means a folder: it is one, ends with a slash, or has no suffix."""
    return not Path(out).suffix or Path(out).is_dir() or str(out).endswith(("/", os.sep))


def export_rows(path: Path, out: Path) -> list[str]:
    """Write rows (``.csv``, ``.json``) or counterexamples (``.npz``).

    Args:
        path: the certificate file, finished or not.
        out: the file to write; its suffix names the format.

    Returns:
        lines that say how many rows were written, and which were left out.

    Raises:
        InputError: it is not a certificate file, the suffix is unknown, or the output cannot be written.
    """
    if out.suffix.lower() not in WRITERS:
        raise InputError(f"{out}: name a file that ends in {', '.join(WRITERS)}")
    lines: list[str] = []
    certificates = read(path)
    with opened(path) as file:
        write_whole(out, lambda place: lines.extend(WRITERS[out.suffix.lower()](Source(certificates, file), place)))
    return [f"{lines[0]} written to {out}", *lines[1:]]


@dataclass(frozen=True)
class Source:
    """A certificate file: its scalar columns in memory, the others on disk."""

    certificates: Certificates
    file: h5py.File

    def arrays(self, method: str) -> dict[str, tuple[int, ...]]:
        """List the columns whose rows are arrays, with the shape of a row; images are left out."""
        return {n: d.shape[1:] for n, d in self.file[method].items() if d.ndim > 1 and n != IMAGE}

    def pending(self) -> list[str]:
        """Count the rows without an answer, one line for each method that has some."""
        counts = {name: rows.count(Status.PENDING) for name, rows in self.certificates.methods.items()}
        return [f"{name}: {counted(n, 'row')} without an answer yet, left out" for name, n in counts.items() if n]

    def rows(self, wanted: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
        """Yield the finished rows of all methods as values by column name, with the wanted array columns."""
        for method in self.certificates:
            facts = {
                "method": method.name,
                "guarantee": find(method.name).guarantee.value,
                "norm": method.norm,
                "eps": method.eps,
            }
            for rows in blocks(np.flatnonzero(method["status"] != Status.PENDING)):
                columns = {name: method[name][rows].tolist() for name in _ordered(method)}
                columns["status"] = [Status(value).name for value in columns["status"]]
                columns |= {name: self.file[method.name][name][rows].tolist() for name in wanted[method.name]}
                for values in zip(*columns.values(), strict=True):
                    yield facts | dict(zip(columns, values, strict=True))

    def falsified(self) -> Iterator[tuple[MethodRows, Int[np.ndarray, " rows"]]]:
        """List the methods that store counterexamples, with the rows that have one.

        Raises:
            InputError: no method stores counterexamples.
        """
        methods = [rows for name, rows in self.certificates.methods.items() if IMAGE in self.file[name]]
        if not methods:
            had = ", ".join(self.certificates.methods)
            raise InputError(f"{self.certificates.path} has no method that stores counterexamples, such as pgd: {had}")
        return ((rows, np.flatnonzero(rows["status"] == Status.FALSIFIED)) for rows in methods)

    def images(self, method: str, rows: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows *shape"]:
        """Read the counterexamples of some rows, in ascending order."""
        return np.asarray(self.file[method][IMAGE][rows])


def blocks(rows: Int[np.ndarray, " rows"]) -> Iterator[Int[np.ndarray, " block"]]:
    """Split row numbers into blocks that are read at once."""
    return (rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK))


def _ordered(method: MethodRows) -> list[str]:
    """List the columns, those that every method has first."""
    common = [column.name for column in COMMON_COLUMNS if column.name in method.columns]
    return [*common, *(name for name in method.columns if name not in common)]


def _csv(source: Source, out: Path) -> list[str]:
    """Write one line per sample and method; a column that a method does not have is empty."""
    wide = {name: source.arrays(name) for name in source.certificates.methods}
    taken = {name: [c for c, shape in columns.items() if math.prod(shape) <= WIDEST] for name, columns in wide.items()}
    header = ["method", "guarantee", "norm", "eps"]
    for method in source.certificates.methods.values():
        entries = [entry for column in taken[method.name] for entry in _entries(column, wide[method.name][column])]
        header += [name for name in (*_ordered(method), *entries) if name not in header]
    count = 0
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, lineterminator="\n")
        writer.writeheader()
        for row in source.rows(taken):
            count += 1
            for column in taken[row["method"]]:
                shape = wide[row["method"]][column]
                row |= zip(_entries(column, shape), np.ravel(row.pop(column)).tolist(), strict=True)
            writer.writerow(row)
    left_out = [
        f"{column} of {name} is left out: {math.prod(shape)} entries a row, CSV takes {WIDEST} (.json has it)"
        for name, columns in wide.items()
        for column, shape in columns.items()
        if column not in taken[name]
    ]
    return [counted(count, "row"), *source.pending(), *left_out]


def _entries(column: str, shape: tuple[int, ...]) -> list[str]:
    """Name the entries of an array: ``votes_0_3``."""
    return ["_".join([column, *map(str, place)]) for place in product(*map(range, shape))]


def _json(source: Source, out: Path) -> list[str]:
    """Write the attributes of the file and of each method, and all rows; nan and infinities become null."""
    certificates, count = source.certificates, 0
    methods = {name: _strict(rows.attributes) for name, rows in certificates.methods.items()}
    with open(out, "w", encoding="utf-8") as file:
        file.write(f'{{"attributes": {_dumps(certificates.attributes)},\n"methods": {_dumps(methods)},\n"rows": [')
        for count, row in enumerate(source.rows({name: list(source.arrays(name)) for name in methods}), start=1):
            file.write(f"{',' if count > 1 else ''}\n{_dumps(row)}")
        file.write("\n]}\n")
    return [counted(count, "row"), *source.pending()]


def _dumps(value: Any) -> str:
    return json.dumps(_strict(value), allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return _strict(value.tolist())
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _npz(source: Source, out: Path) -> list[str]:
    """Write every counterexample in arrays of equal length: image, method, index, label, predicted, distance."""
    found = list(source.falsified())
    shape = source.file[found[0][0].name][IMAGE].shape[1:]
    count = sum(len(rows) for _, rows in found)
    names = [method.name for method, rows in found for _ in rows]
    with zipfile.ZipFile(out, "w") as archive:
        _write_images(archive, source, found, (count, *shape))
        with archive.open("method.npy", "w") as entry:
            np.lib.format.write_array(entry, np.array(names, dtype=str), allow_pickle=False)
        for column in ("index", "label", "predicted", "distance"):
            with archive.open(f"{column}.npy", "w") as entry:
                values = np.concatenate([method[column][rows] for method, rows in found])
                np.lib.format.write_array(entry, values, allow_pickle=False)
    return [counted(count, "counterexample"), *source.pending()]


def _write_images(
    archive: zipfile.ZipFile, source: Source, found: Sequence[tuple[MethodRows, np.ndarray]], shape: tuple[int, ...]
) -> None:
    """Write the header of an .npy array, then its values block by block."""
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with archive.open("image.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header)
        for method, rows in found:
            for block in blocks(rows):
                entry.write(source.images(method.name, block).astype("<f4").tobytes())


#: What writes each format, by the end of the file's name.
WRITERS: Mapping[str, Callable[[Source, Path], list[str]]] = {".csv": _csv, ".json": _json, ".npz": _npz}
