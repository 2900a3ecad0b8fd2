"""The schema of the certificate file: every member is checked before a byte of it is read or written.

A file can come from anybody. HDF5 lets a column lie in another file, be a view of other columns, or be larger than the
file; a program that follows it reads and overwrites files of its user. So a member is a hard link to a group or to a
contiguous column inside the file, of the type, shape and size that ``writer`` gives it; anything else is refused.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from verifiers.core.columns import COMMON_COLUMNS, Column
from verifiers.core.errors import InputError, quoted
from verifiers.core.quantities import Epsilon, Norm, whole_box
from verifiers.core.status import Status

FORMAT = "certkd-certificates"
FORMAT_VERSION = 4
#: Room for a method's notes, in bytes, and for each of them, in characters. The notes are one attribute of fixed size,
#: overwritten in place: a new attribute moves parts of the file, and a kill in between makes it unreadable.
NOTES_BYTES, NOTE_LENGTH = 8192, 1000
#: The longest text of an attribute, in bytes: what HDF5 stores in an object's header.
TEXT_BYTES = 60_000
#: The most members of a group, attributes of a member, and bytes of a file's columns of scalars.
MEMBERS, ATTRIBUTES, TABLE_BYTES = 64, 200, 2**30
#: The longest name of a member, in characters.
LONGEST_NAME = 64
#: The most pixels of an image where a file does not say how many it has.
PIXELS = 10**8
#: What columns hold.
_NUMBERS = ("uint8", "int8", "uint32", "int64", "float32", "float64")
#: Attributes that a file and a method's group must have.
_OF_FILE = {"identity": str, "samples": int, "settings": str}
_OF_METHOD = {"claim": str, "eps": float, "eps_text": str, "norm": str, "notes": str}
#: The kinds of attributes that a file may lack and that are read as something else than text.
_OPTIONAL = {"seed": int, "data_seed": int, "pixels": int, "imported": bool, "data": str, "split": str}

#: The columns of each known method after the common ones; the list of methods fills it in.
TABLES: dict[str, tuple[Column, ...]] = {}


class _Place(NamedTuple):
    """Hold the place of a column in the file, in bytes."""

    start: int
    size: int
    scalars: bool
    where: str


def check(file: h5py.File, path: Path, tables: Mapping[str, tuple[Column, ...]] = TABLES) -> None:
    """Refuse a file with a member that the writer would not have made; reads attributes only, and none that is large.

    Args:
        file: the open file.
        path: of the file.
        tables: the columns of known methods, after the common ones; of other methods any columns are taken.

    Raises:
        InputError: naming the file and the first such member.
    """
    attributes = attributes_of(file, path)
    _require(attributes, _OF_FILE, _OPTIONAL, f"{path}")
    samples = attributes["samples"]
    names = _methods(file, path)
    members = _members(file, h5py.h5o.TYPE_GROUP, "group", path)
    if sorted(members) != sorted(names) or not names:
        raise InputError(f"{path} has the groups {quoted(members)}, its methods are {quoted(names)}")
    settings = _object(attributes["settings"], f"{path}: settings")
    if missing := [name for name in names if not isinstance(settings.get(name), dict)]:
        raise InputError(f"{path}: settings lacks an entry for {quoted(missing[0])}")
    places = [
        place for name in names for place in _check_method(file[name], f"{path}: {name}", tables.get(name), samples)
    ]
    _check_places(sorted(places), path)


def attributes_of(member: h5py.Group | h5py.Dataset, where: object) -> dict[str, Any]:
    """Read a member's attributes as Python values, after their types and sizes were checked.

    Raises:
        InputError: too many, or one that is no number, truth value, list of names or short text.
    """
    count = h5py.h5a.get_num_attrs(member.id)
    if count > ATTRIBUTES:
        raise InputError(f"{where} has {count} attributes, more than {ATTRIBUTES}")
    values: dict[str, Any] = {}
    for number in range(count):
        attribute = h5py.h5a.open(member.id, index=number)
        name, kind = attribute.name.decode(), attribute.get_type()
        shape = None if attribute.get_space().get_simple_extent_type() == h5py.h5s.NULL else attribute.shape
        text = isinstance(kind, h5py.h5t.TypeStringID) and not kind.is_variable_str()
        plain = any(kind.equal(_stored(np.dtype(dtype))) for dtype in ("int64", "float64", "bool"))
        listed = text and name == "methods" and shape is not None and len(shape) == 1
        if not (text or plain) or not (shape == () or listed):
            raise InputError(f"{where}: the attribute {quoted(name)} is neither a number nor a text of fixed length")
        if kind.get_size() * math.prod(shape or ()) > TEXT_BYTES:
            raise InputError(f"{where}: the attribute {quoted(name)} takes more than {TEXT_BYTES} bytes")
        values[name] = _value(member.attrs[name])
    return values


def _value(stored: Any) -> Any:
    """A stored attribute as a Python value."""
    if isinstance(stored, np.ndarray):
        return [_value(one) for one in stored]
    if isinstance(stored, bytes):
        return stored.rstrip(b"\0").decode()
    return stored.item() if isinstance(stored, np.generic) else stored


def text(value: str) -> np.ndarray:
    """A text as attributes store it: of fixed length, so that its size is known before it is read.

    Raises:
        InputError: it is longer than an attribute may be.
    """
    content = value.encode("utf-8", "backslashreplace")
    if len(content) > TEXT_BYTES:
        raise InputError(f"{quoted(value)} is too long for a certificate file: {len(content)} of {TEXT_BYTES} bytes")
    return np.array(content, dtype=h5py.string_dtype("utf-8", max(1, len(content))))


def put_attributes(member: h5py.Group | h5py.Dataset, values: Mapping[str, Any]) -> None:
    """Write attributes as ``attributes_of`` reads them; lists and dictionaries as JSON."""
    for name, value in values.items():
        plain = value if isinstance(value, str | int | float | bool) else json.dumps(value)
        stored: Any = text(plain) if isinstance(plain, str) else plain
        member.attrs.create(name, stored, dtype=getattr(stored, "dtype", None))


def notes_of(group: h5py.Group) -> dict[str, str]:
    """Read the notes of a method's group."""
    return {str(name): str(note) for name, note in json.loads(bytes(group.attrs["notes"]).rstrip(b"\0")).items()}


def _check_method(group: h5py.Group, where: str, own: tuple[Column, ...] | None, samples: int) -> list[_Place]:
    """Check a method's group; returns the places of its columns."""
    attributes = attributes_of(group, where)
    _require(attributes, _OF_METHOD, {}, where)
    _object(attributes["notes"], f"{where}: notes")
    if attributes["norm"] not in list(Norm):
        raise InputError(f"{where}: unknown norm {quoted(attributes['norm'])}")
    _check_eps(attributes["eps"], attributes["eps_text"], where)
    columns = {column.name: column for column in (*COMMON_COLUMNS, *(own or ()))}
    members = _members(group, h5py.h5o.TYPE_DATASET, "column", where)
    strange = [name for name in members if name not in columns] if own is not None else []
    missing = [name for name in columns if name not in members]
    if strange or missing:
        raise InputError(
            f"{where} {'has an unknown' if strange else 'lacks the'} column {quoted([*strange, *missing][0])}"
        )
    return [
        _check_column(h5py.h5d.open(group.id, name.encode()), columns.get(name), f"{where}: {name}", samples)
        for name in members
    ]


def _check_eps(eps: float, written: str, where: str) -> None:
    try:
        same = Epsilon.parse(written).value == eps
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not same:
        raise InputError(f"{where}: eps is {eps!r}, its text {quoted(written)}")


def _check_column(column: h5py.h5d.DatasetID, wanted: Column | None, where: str, samples: int) -> _Place:
    """Check a column, and return its place.

    Args:
        wanted: its description; None where the method is not known.
    """
    creation = column.get_create_plist()  # before its shape, which may depend on other files
    if creation.get_layout() != h5py.h5d.CONTIGUOUS or creation.get_external_count() or creation.get_nfilters():
        raise InputError(f"{where} is not stored in one piece inside the file")
    dtypes = _NUMBERS if wanted is None else (wanted.dtype,)
    if not any(column.get_type().equal(_stored(np.dtype(dtype))) for dtype in dtypes):
        raise InputError(f"{where} does not hold {' or '.join(dtypes)}")
    shape, axes = column.shape, None if wanted is None else wanted.axes
    rank = len(shape) - 1 if axes is None or "image" in axes else len(axes)
    fixed = [(n, axis) for n, axis in enumerate(axes or (), 1) if isinstance(axis, int)]
    if not shape or shape[0] != samples or len(shape) != rank + 1 or any(shape[n] != axis for n, axis in fixed):
        raise InputError(f"{where} has shape {shape} for {samples} samples")
    attributes_of(h5py.Dataset(column), where)
    size = math.prod(shape) * column.get_type().get_size()
    start = column.get_offset()
    if not size or start is None:
        raise InputError(f"{where} has no place in the file")
    return _Place(start, size, len(shape) == 1, where)


def _check_places(places: Sequence[_Place], path: Path) -> None:
    """Refuse columns outside the file, columns that share bytes, and more than memory should hold."""
    end, length = 0, os.stat(path).st_size
    for place in places:
        if place.start < end:
            raise InputError(f"{place.where} shares its place in the file with another column")
        end = place.start + place.size
        if end > length:
            raise InputError(f"{place.where} ends after the end of the file: it is cut off")
    if sum(place.size for place in places if place.scalars) > TABLE_BYTES:
        raise InputError(f"{path} has more rows than a certificate file takes")


def largest_radius(facts: Mapping[str, Any], attributes: Mapping[str, Any]) -> float:
    """The radius of a ball that holds every image, or eps if that is larger: no larger one is written.

    Args:
        facts: attributes of the file.
        attributes: those of the method.
    """
    return float(max(attributes["eps"], whole_box(Norm(attributes["norm"]), int(facts.get("pixels", PIXELS)))))


def check_rows(
    facts: Mapping[str, Any], attributes: Mapping[str, Any], columns: Mapping[str, np.ndarray], where: str
) -> None:
    """Refuse values that no method gives, in the finished rows.

    Args:
        facts: attributes of the file.
        attributes: those of the method.
        columns: its columns of scalars.
        where: names the method in messages.

    Raises:
        InputError: an unknown status, a class or an index below -1, a truth value that is none, a radius that is no
            number, negative, or larger than both eps and the box of all images, or times that nothing can take. Rows
            of an imported log may have no time, and those that ended in a stage none for the other stages.
    """
    status = columns["status"]
    done = status != Status.PENDING
    radius, seconds, most = columns["radius"], columns["seconds"], largest_radius(facts, attributes)
    problems = {
        "status": status > max(Status),
        **{name: columns[name] < -1 for name in ("index", "label", "predicted")},
        "correct": columns["correct"] > 1,
        "certified": columns["certified"] > 1,
        "radius": ~((radius >= 0) & (radius <= most)),
        **{name: (columns[name] < 0) | np.isinf(columns[name]) for name in columns if name.endswith("_seconds")},
        "seconds": ~(np.isfinite(seconds) & (seconds >= 0)) & ~(np.isnan(seconds) & bool(facts.get("imported"))),
    }
    for name, wrong in problems.items():
        if (wrong & done).any():
            row = int(np.flatnonzero(wrong & done)[0])
            raise InputError(f"{where}: row {row} has the {name} {columns[name][row]}, which no certificate has")


def _methods(file: h5py.File, path: Path) -> list[str]:
    """The names of the file's methods, in the order in which they ran."""
    if "methods" not in file.attrs:
        raise InputError(f"{path} does not name its methods")
    names = _value(file.attrs["methods"])
    if not isinstance(names, list) or not all(name.isprintable() and 0 < len(name) <= 64 for name in names):
        raise InputError(f"{path}: methods is not a list of names, but {quoted(names)}")
    return names


def _members(group: h5py.Group, kind: int, word: str, where: object) -> list[str]:
    """The names of a group's members: hard links to objects of one kind, and not too many."""
    if len(group) > MEMBERS:
        raise InputError(f"{where} has {len(group)} members, more than {MEMBERS}")
    names = list(group)
    for name in names:
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise InputError(f"{where}: {quoted(name)} is no name of a {word}")
        link = group.id.links.get_info(name.encode()).type
        if link != h5py.h5l.TYPE_HARD or h5py.h5o.get_info(group.id, name.encode()).type != kind:
            raise InputError(f"{where}: {quoted(name)} is not a {word} of the file itself")
    return names


def _require(attributes: Mapping[str, Any], needed: Mapping[str, type], more: Mapping[str, type], where: str) -> None:
    """Check that attributes are there and of their types."""
    for name, kind in {**needed, **more}.items():
        if name not in attributes and name in needed:
            raise InputError(f"{where} lacks the attribute {name!r}")
        if name in attributes and type(attributes[name]) is not kind:
            raise InputError(f"{where}: the attribute {name!r} is {quoted(attributes[name])}, not {kind.__name__}")


def _object(written: str, where: str) -> dict[str, Any]:
    """Parse a JSON object."""
    try:
        value = json.loads(written)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(f"{where} holds no JSON object, but {quoted(written)}")
    return value


def _stored(dtype: np.dtype) -> h5py.h5t.TypeID:
    """The type of the file that values of a numpy type are stored as."""
    return h5py.h5t.py_create(dtype, logical=True)
