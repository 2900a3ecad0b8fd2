"""The certificate file: HDF5, one group per method, one row per sample, written so that a killed run loses nothing.

Columns are allocated at full length when the file is created, under a temporary name that is renamed when complete.
Rows are written data first, then flushed, then their status, then flushed: a row counts only when it has a status.
So a process killed at any moment leaves a readable file with every finished row in it. One process writes (HDF5's file
lock); any number may read, also while it is being written.
"""

import errno
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from verifiers.certificate import COMMON_COLUMNS, FAILURES, Column, Columns, MethodInfo, Request, Status
from verifiers.errors import InputError, one_line

FORMAT = "certkd-certificates"
FORMAT_VERSION = 1
#: Room for a method's notes, in bytes, and for each of them, in characters. The notes are one attribute of fixed size,
#: overwritten in place: a new attribute moves parts of the file, and a kill in between makes it unreadable.
NOTES_BYTES, NOTE_LENGTH = 8192, 1000
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)
#: What differs between two choices of samples from one data set.
_SAMPLES = ("data_sha256", "indices_sha256", "samples")
_in_memory = (f"in memory {number}" for number in itertools.count())


@dataclass(frozen=True)
class MethodRows:
    """All rows of one method, as arrays, with its attributes (name, guarantee, norm, eps, settings)."""

    name: str
    attributes: Mapping[str, Any]
    columns: Mapping[str, np.ndarray]

    def __getitem__(self, column: str) -> np.ndarray:
        return self.columns[column]

    def __len__(self) -> int:
        return len(self.columns["status"])

    @property
    def eps(self) -> float:
        """The radius that certified accuracy is reported at, pixel units."""
        return float(self.attributes["eps"])

    @property
    def deterministic(self) -> bool:
        """Whether its radii are proofs."""
        return bool(self.attributes["guarantee"] == "deterministic")

    @property
    def certifies(self) -> bool:
        """Whether it has radii at all: an estimate has none."""
        return bool(self.attributes["guarantee"] != "estimate")

    @property
    def answered(self) -> bool:
        """Whether every row has an answer: none pending, none that ended in a failure."""
        return not np.isin(self.columns["status"], [Status.PENDING, *FAILURES]).any()

    def count(self, status: Status) -> int:
        """Rows in that status."""
        return int((self.columns["status"] == status).sum())


@dataclass(frozen=True)
class Certificates:
    """A whole certificate file (or an equal result that was never written): attributes and methods by name."""

    attributes: Mapping[str, Any]
    methods: Mapping[str, MethodRows]
    path: str = ""

    def __getitem__(self, method: str) -> MethodRows:
        return self.methods[method]

    @property
    def eps(self) -> float:
        """The radius that certified accuracy is reported at, pixel units."""
        return next(iter(self.methods.values())).eps

    @property
    def pending(self) -> int:
        """Rows without an answer yet, over all methods."""
        return sum(rows.count(Status.PENDING) for rows in self.methods.values())

    def to_dict(self) -> dict[str, dict[str, np.ndarray]]:
        """Columns by method and name, ready for ``pandas.DataFrame``; images are left out."""
        return {
            name: {column: values for column, values in rows.columns.items() if values.ndim == 1}
            for name, rows in self.methods.items()
        }


class CertificateFile:
    """The one writer of a certificate file, used as a context manager.

    Opening creates the file, or goes on with the one that is there when it was started with the same configuration.
    Rows that ended in a failure (UNSUPPORTED, OUT_OF_MEMORY, TIMEOUT, ERROR) become PENDING again.

    Args:
        path: where; its folder is made. None keeps the rows in memory.
        identity: what the rows depend on (network, data, method settings); a file with another identity is refused.
        facts: attributes that may differ between two runs (device, versions, command line, time).
        samples: number of rows.
        sizes: lengths behind the names of axes that columns use.
        methods: their records.
        requests: norm, eps and options by method name.

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
        methods: Sequence[MethodInfo],
        requests: Mapping[str, Request],
    ) -> None:
        self.path = Path("in memory" if path is None else path)
        self._identity = json.dumps(identity, sort_keys=True)

        def fill(file: h5py.File) -> None:
            _fill(file, self._identity, facts, samples, sizes, methods, requests)

        if path is None:
            self._file = h5py.File(next(_in_memory), "w", driver="core", backing_store=False)
            fill(self._file)
        else:
            if not _exists(self.path):
                _create(self.path, fill)
            self._file = _open_for_writing(self.path)
        try:
            self._check_identity()
            for method in methods:
                self._retry_failures(method.name)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "CertificateFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except (OSError, RuntimeError) as problem:
            if error is None:
                raise InputError(_cannot_write(self.path, problem)) from None

    def _check_identity(self) -> None:
        _check_format(self._file, self.path)
        there = json.loads(self._file.attrs["identity"])
        wanted = json.loads(self._identity)
        different = sorted(key for key in there.keys() | wanted.keys() if there.get(key) != wanted.get(key))
        if set(_SAMPLES) >= set(different) >= {"data_sha256", "indices_sha256"}:
            raise InputError(
                f"{self.path} holds other samples ({there.get('samples')} of them, now {wanted.get('samples')}): "
                "choose another output file (--out), or delete this one"
            )
        if different:
            key, was, now = _innermost(different[0], there.get(different[0]), wanted.get(different[0]))
            raise InputError(
                f"{self.path} was made with another {key} ({_short(was)}, now {_short(now)}): "
                "choose another output file (--out), or delete this one"
            )

    def _retry_failures(self, method: str) -> None:
        status = self._file[method]["status"][:]
        failed = np.isin(status, [int(s) for s in FAILURES])
        if failed.any():
            status[failed] = Status.PENDING
            with _clear_errors(self.path):
                self._file[method]["status"][:] = status
                self._file.flush()

    def pending(self, method: str) -> np.ndarray:
        """Row numbers of the method that have no answer yet."""
        return np.flatnonzero(self._file[method]["status"][:] == Status.PENDING)

    def predicted(self, method: str, column: str = "predicted") -> tuple[np.ndarray, np.ndarray]:
        """The network's predicted classes as stored, and which rows are finished."""
        group = self._file[method]
        return group[column][:], group["status"][:] != Status.PENDING

    def eps(self, method: str) -> float:
        """The radius that certified accuracy is reported at."""
        return float(self._file[method].attrs["eps"])

    def attack_distance(self, rows: np.ndarray) -> np.ndarray:
        """Length of the shortest counterexample stored for each row; nan when there is none."""
        found = [group["distance"][:][rows] for group in self._file.values() if "distance" in group]
        return np.fmin.reduce(found) if found else np.full(len(rows), np.nan)

    def note(self, method: str, name: str, value: str | None) -> None:
        """Note something about a method, such as the engine that ran or why it could not; None takes it back."""
        notes = {**_notes(self._file[method]), name: value and value[:NOTE_LENGTH]}
        text = json.dumps({key: known for key, known in notes.items() if known is not None}, ensure_ascii=False)
        if len(text.encode()) > NOTES_BYTES:
            raise ValueError(f"{method}: notes take more than {NOTES_BYTES} bytes: {', '.join(notes)}")
        with _clear_errors(self.path):
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
        with _clear_errors(self.path):
            for name, values in columns.items():
                if name != "status":
                    there = _has_value(values)
                    _put(group[name], rows[there], values[there])
            self._file.flush()
            _put(group["status"], rows, columns["status"])
            self._file.flush()

    def read(self) -> Certificates:
        """The rows as they stand."""
        return _contents(self._file, self.path)


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


def _exists(path: Path) -> bool:
    if "\0" in str(path):
        raise InputError(f"{str(path)!r} is not a file name")
    with _clear_errors(path):
        return path.exists()


def _create(path: Path, fill: Callable[[h5py.File], None]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with _clear_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.unlink(missing_ok=True)  # of a killed process with our number: perhaps a second name of its file
            with h5py.File(h5py.h5f.create(bytes(temporary), h5py.h5f.ACC_TRUNC, fapl=_access())) as file:
                fill(file)
                file.flush()
            _publish(temporary, path)
    finally:
        with suppress(OSError):  # where it cannot be removed it could not be made
            temporary.unlink(missing_ok=True)


def _fill(
    file: h5py.File,
    identity: str,
    facts: Mapping[str, Any],
    samples: int,
    sizes: Mapping[str, Sequence[int]],
    methods: Sequence[MethodInfo],
    requests: Mapping[str, Request],
) -> None:
    file.attrs.update({"format": FORMAT, "format_version": FORMAT_VERSION, "identity": identity})
    file.attrs["methods"] = [method.name for method in methods]
    for name, value in {**json.loads(identity), **facts}.items():
        file.attrs[name] = value if isinstance(value, str | int | float | bool) else json.dumps(value)
    for method in methods:
        _create_group(file, method, requests[method.name], samples, sizes)


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


def _create_group(
    file: h5py.File, method: MethodInfo, request: Request, samples: int, sizes: Mapping[str, Sequence[int]]
) -> None:
    group = file.create_group(method.name)
    group.attrs.update({"guarantee": str(method.guarantee), "claim": method.claim, "paper": method.paper})
    group.attrs.update({"eps": request.eps.value, "eps_text": request.eps.text, "norm": str(request.norm)})
    given = {name: value for name, value in request.options.items() if value is not None}
    group.attrs.update({"seed": request.seed, **given})
    group.attrs.create("notes", np.bytes_(b"{}"), dtype=f"S{NOTES_BYTES}")
    for column in (*COMMON_COLUMNS, *method.columns):
        lengths = (size for axis in column.axes for size in (sizes[axis] if isinstance(axis, str) else (axis,)))
        _create_column(group, column, (samples, *lengths))


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
    group[column.name].attrs.update({"description": column.description, "units": column.units})
    if column.guarantee is not None:
        group[column.name].attrs["guarantee"] = column.guarantee.value


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


def _open_for_writing(path: Path) -> h5py.File:
    if path.is_file() and path.stat().st_size == 0:  # HDF5 would make it one
        raise InputError(f"{path} is not a certificate file: it is empty; give --out another name")
    try:
        return h5py.File(h5py.h5f.open(bytes(path), h5py.h5f.ACC_RDWR, fapl=_access()))
    except BlockingIOError:
        raise InputError(
            f"{path} is being written by another process: wait for it, or give --out another name"
        ) from None
    except OSError as problem:
        if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(_cannot_write(path, problem)) from None
        raise InputError(f"{path} is not a certificate file: {_reason(problem)}; give --out another name") from None


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


def _innermost(key: str, was: Any, now: Any) -> tuple[str, Any, Any]:
    """The first entry in which two settings differ."""
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return key, was, now
    inner = min(name for name in was.keys() | now.keys() if was.get(name) != now.get(name))
    return _innermost(f"{key} {inner}", was.get(inner), now.get(inner))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:16]}…"
