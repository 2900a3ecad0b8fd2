"""The certificate file: HDF5, one group per method, one row per sample, written so that a killed run loses nothing.

Columns are allocated at full length when the file is created, under a temporary name that is renamed when complete.
Rows are written data first, then flushed, then their status, then flushed: a row counts only when it has a status.
So a process killed at any moment leaves a readable file with every finished row in it. One process writes (HDF5's file
lock); any number may read, also while it is being written.
"""

import errno
import itertools
import json
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from verifiers.core.columns import COMMON_COLUMNS, Column, Columns
from verifiers.core.errors import InputError
from verifiers.core.status import FAILURES, Status
from verifiers.results.hdf5 import cannot_write, clear_errors, has_value, put, writing_access
from verifiers.results.identity import ANOTHER, check_same
from verifiers.results.lock import Lock, busy
from verifiers.results.reader import contents, opened
from verifiers.results.rows import Certificates
from verifiers.results.schema import (
    FORMAT,
    FORMAT_VERSION,
    NOTE_LENGTH,
    NOTES_BYTES,
    TABLES,
    attributes_of,
    largest_radius,
    notes_of,
    put_attributes,
)

#: How the name of a certificate file may end.
SUFFIXES = (".h5", ".hdf5")
_in_memory = (f"in memory {number}" for number in itertools.count())


@dataclass(frozen=True)
class MethodTable:
    """A method as the file stores it: a group of that name.

    Attributes:
        name: the group's.
        columns: the method's own, after the common ones.
        attributes: plain values that hold for all its rows: norm, eps, eps_text, claim, paper, settings.
    """

    name: str
    columns: Sequence[Column]
    attributes: Mapping[str, str | int | float]


class CertificateFile:
    """The one writer of a certificate file, used as a context manager.

    Opening creates the file, or resumes the one that is there, if it was begun with the same configuration.
    Rows that ended in a failure (UNSUPPORTED, OUT_OF_MEMORY, TIMEOUT, ERROR) become PENDING again.

    Args:
        path: where; its folder is made. None keeps the rows in memory.
        identity: what the rows depend on (network, data, method settings); a file with another identity is refused.
        facts: attributes that may differ between two runs (device, versions, command line, time).
        samples: number of rows.
        sizes: lengths behind the names of axes that columns use.
        methods: a group each, in the order in which they run.

    Raises:
        InputError: not a certificate file, another configuration, another writer, no permission, no space.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        *,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
        samples: int,
        sizes: Mapping[str, Sequence[int]],
        methods: Sequence[MethodTable],
    ) -> None:
        self.path = Path("in memory" if path is None else path)
        self._identity = json.dumps(identity, sort_keys=True)
        self._lock: Lock | None = None

        def fill(file: h5py.File) -> None:
            pixels = {"pixels": math.prod(sizes["image"])} if "image" in sizes else {}
            _fill(file, self._identity, {**facts, **pixels, "samples": samples})
            file.attrs["methods"] = np.array([method.name.encode() for method in methods])
            for method in methods:
                _create_group(file, method, samples, sizes)

        if path is None:
            self._file = h5py.File(next(_in_memory), "w", driver="core", backing_store=False)
            fill(self._file)
        else:
            if not _exists(self.path):
                _create(self.path, fill)
            self._lock = _lock(self.path)
            try:
                self._file = _open_for_writing(self.path, methods)
            except BaseException:
                self._lock.release()
                raise
        try:
            self._check_identity()
            self._check_shapes(methods, samples, sizes)
            for method in methods:
                self._retry_failures(method.name)
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        try:
            self._file.close()
        finally:
            if self._lock is not None:
                self._lock.release()

    def __enter__(self) -> "CertificateFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._close()
        except (OSError, RuntimeError) as problem:
            if error is None:
                raise InputError(cannot_write(self.path, problem)) from None
        if error is None and self._lock is not None and not self.path.exists():
            raise InputError(f"{self.path} was removed while it was written: run the same command again")

    def _check_identity(self) -> None:
        check_same(self.path, json.loads(self._file.attrs["identity"]), json.loads(self._identity))

    def _check_shapes(self, methods: Sequence[MethodTable], samples: int, sizes: Mapping[str, Sequence[int]]) -> None:
        for method in methods:
            for column in (*COMMON_COLUMNS, *method.columns):
                shape, wanted = self._file[method.name][column.name].shape, _shape(column, samples, sizes)
                if shape != wanted:
                    raise InputError(
                        f"{self.path}: {column.name} of {method.name} has shape {shape}, not {wanted}: choose another "
                        "output file"
                    )

    def _retry_failures(self, method: str) -> None:
        status = self._file[method]["status"][:]
        failed = np.isin(status, [int(s) for s in FAILURES])
        if failed.any():
            status[failed] = Status.PENDING
            with clear_errors(self.path):
                self._file[method]["status"][:] = status
                self._file.flush()

    def pending(self, method: str) -> np.ndarray:
        """Row numbers of the method that have no answer yet."""
        return np.flatnonzero(self._file[method]["status"][:] == Status.PENDING)

    def predicted(self, method: str, column: str = "predicted") -> tuple[np.ndarray, np.ndarray]:
        """The network's predicted classes as stored, and which rows are finished."""
        group = self._file[method]
        return group[column][:], group["status"][:] != Status.PENDING

    def largest_radius(self, method: str) -> float:
        """The radius of a ball that holds every image, or eps if that is larger: no larger one is written."""
        return largest_radius(self._file.attrs, attributes_of(self._file[method], method))

    def overflows(self, method: str) -> int:
        """Number of rows on whose ball at eps values may overflow in float32."""
        group = self._file[method]
        return int(np.isposinf(group["rounding"][:]).sum()) if "rounding" in group else 0

    def attack_distance(self, rows: np.ndarray, skip: Collection[str] = ()) -> np.ndarray:
        """Length of the shortest counterexample stored for each row, but for some methods; nan when there is none."""
        groups = [group for name, group in self._file.items() if name not in skip]
        found = [group["distance"][:][rows] for group in groups if "distance" in group]
        return np.fmin.reduce(found) if found else np.full(len(rows), np.nan)

    def counterexamples(self, rows: np.ndarray) -> list[np.ndarray]:
        """Images that each method stored for rows; nan where it found none."""
        return [group["counterexample"][rows] for group in self._file.values() if "counterexample" in group]

    def note(self, method: str, name: str, value: str | None) -> None:
        """Note something about a method, such as the engine that ran or why it could not; None takes it back."""
        notes = {**notes_of(self._file[method]), name: value and value[:NOTE_LENGTH]}
        text = json.dumps({key: known for key, known in notes.items() if known is not None}, ensure_ascii=False)
        if len(text.encode()) > NOTES_BYTES:
            raise ValueError(f"{method}: notes take more than {NOTES_BYTES} bytes: {', '.join(notes)}")
        with clear_errors(self.path):
            self._file[method].attrs.modify("notes", np.bytes_(text.encode()))

    def write(self, method: str, rows: np.ndarray, columns: Columns) -> None:
        """Write whole rows: every column first, the status last, each flushed to the operating system.

        Args:
            rows: ascending row numbers.
            columns: one value per row, ``status`` among them and not PENDING.

        Raises:
            InputError: the disk is full or the file cannot be written; finished rows stay.
        """
        group = self._file[method]
        with clear_errors(self.path):
            for name, values in columns.items():
                if name != "status":
                    there = has_value(values)
                    put(group[name], rows[there], values[there])
            self._file.flush()
            put(group["status"], rows, columns["status"])
            self._file.flush()

    def read(self) -> Certificates:
        """The rows as they stand."""
        return contents(self._file, self.path)


def discard(path: Path) -> None:
    """Delete an HDF5 file, if it is there and nobody writes it.

    Raises:
        InputError: another kind of file is there, or another process writes it.
    """
    if _exists(path):
        check_output(path, anew=True)
        path.unlink()


def check_output(path: str | os.PathLike[str], *, anew: bool = False, asked: Mapping[str, Any] | None = None) -> None:
    """Check that a certificate file can be written or resumed at a place, before anything is computed.

    Args:
        path: of the file.
        anew: a file that is there will be deleted first; it may be of any version.
        asked: a part of the identity that a file that is there must have.

    Raises:
        InputError: the name does not end like a certificate file's, another file or a folder is there, the folder
            cannot be written, another process writes the file, or it was begun with other settings.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: the name of a certificate file ends in {' or '.join(SUFFIXES)}")
    if _exists(path):
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a file in it, like {path / 'student.h5'}")
        lock = _lock(path)
        try:
            if not anew:
                _check_file(path, TABLES, asked)
            elif not h5py.is_hdf5(path):
                raise InputError(f"{path} is not a certificate file and is not deleted: {ANOTHER}")
        finally:
            lock.release()
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    number = errno.ENOTDIR if not folder.is_dir() else None if os.access(folder, os.W_OK | os.X_OK) else errno.EACCES
    if number is not None:
        raise InputError(cannot_write(path, OSError(number, os.strerror(number))))


def _exists(path: Path) -> bool:
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is not a file name")
    with clear_errors(path):
        return path.exists()


def _create(path: Path, fill: Callable[[h5py.File], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with clear_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # of a killed process with our number: perhaps a second name of its file
            with h5py.File(h5py.h5f.create(bytes(temporary), h5py.h5f.ACC_TRUNC, fapl=writing_access())) as file:
                fill(file)
                file.flush()
            _publish(temporary, path)
    finally:
        with suppress(OSError):  # where it cannot be removed it could not be made
            temporary.unlink(missing_ok=True)


def _fill(file: h5py.File, identity: str, facts: Mapping[str, Any]) -> None:
    put_attributes(file, {"format": FORMAT, "format_version": FORMAT_VERSION, "identity": identity})
    put_attributes(file, {**json.loads(identity), **facts})


def _publish(temporary: Path, path: Path) -> None:
    """Give the complete file its name, unless another process was faster: then go on with that one."""
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError as problem:
        if problem.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        os.rename(temporary, path)  # a file system without hard links


def _create_group(file: h5py.File, method: MethodTable, samples: int, sizes: Mapping[str, Sequence[int]]) -> None:
    group = file.create_group(method.name)
    put_attributes(group, method.attributes)
    group.attrs.create("notes", np.bytes_(b"{}"), dtype=f"S{NOTES_BYTES}")
    for column in (*COMMON_COLUMNS, *method.columns):
        _create_column(group, column, _shape(column, samples, sizes))


def _shape(column: Column, samples: int, sizes: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    lengths = (size for axis in column.axes for size in (sizes[axis] if isinstance(axis, str) else (axis,)))
    return (samples, *lengths)


def _create_column(group: h5py.Group, column: Column, shape: tuple[int, ...]) -> None:
    """Contiguous and allocated now. Rows with axes are left as holes, which cost no disk until one is written."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_layout(h5py.h5d.CONTIGUOUS)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    if column.axes:
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    else:
        creation.set_fill_value(np.array(column.fill, dtype=column.dtype))
        creation.set_fill_time(h5py.h5d.FILL_TIME_ALLOC)
    kind = h5py.h5t.py_create(np.dtype(column.dtype), logical=True)
    h5py.h5d.create(group.id, column.name.encode(), kind, h5py.h5s.create_simple(shape), dcpl=creation)
    worth = {} if column.guarantee is None else {"guarantee": column.guarantee.value}
    put_attributes(group[column.name], {"description": column.description, "units": column.units, **worth})


def _lock(path: Path) -> Lock:
    """Lock an output file that is there."""
    if not path.is_file() or path.stat().st_size == 0:  # HDF5 would make an empty file one of its own
        what = "it is empty" if path.is_file() else "it is no file"
        raise InputError(f"{path} is not a certificate file: {what}; {ANOTHER}")
    with clear_errors(path):
        return Lock(path)


def _open_for_writing(path: Path, methods: Sequence[MethodTable]) -> h5py.File:
    """Open a file after all of it was checked: what is not as this writer makes it is not opened for writing."""
    _check_file(path, {method.name: tuple(method.columns) for method in methods})
    try:
        with clear_errors(path):
            return h5py.File(h5py.h5f.open(bytes(path), h5py.h5f.ACC_RDWR, fapl=writing_access()))
    except BlockingIOError:
        raise InputError(busy(path)) from None


def _check_file(path: Path, tables: Mapping[str, tuple[Column, ...]], asked: Mapping[str, Any] | None = None) -> None:
    try:
        with opened(path, tables) as file:
            contents(file, path)
            there = json.loads(file.attrs["identity"])
    except InputError as error:
        if isinstance(error.__cause__, BlockingIOError):
            raise InputError(busy(path)) from None
        raise InputError(f"{error}; {ANOTHER}") from None
    if asked is not None:
        check_same(path, {key: there.get(key) for key in asked}, asked)
