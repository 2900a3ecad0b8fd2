"""Check the meaning of a certificate file by itself, without a network; no torch."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from verifiers.core.columns import indices_sha256
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.status import About, Status
from verifiers.core.table import counted
from verifiers.methods.base import Method
from verifiers.methods.registry import find, parse
from verifiers.results.rows import Certificates, MethodRows


def refuse_absurd(certificates: Certificates) -> None:
    """Refuse rows that no method can write, beyond what reading a file refuses.

    Raises:
        InputError: a method that does not exist, or the same sample twice.
    """
    for rows in certificates:
        try:
            find(rows.name)
        except InputError as error:
            raise InputError(f"{certificates.path}: {error}") from None
    index = indices_of(certificates, unfinished=True)
    known, counts = np.unique(index[index >= 0], return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{certificates.path}: sample {known[counts > 1][0]} is in more than one row")


def indices_of(certificates: Certificates, *, unfinished: bool = False) -> np.ndarray:
    """Return the index of each row's sample, from the first method that has finished the row.

    Args:
        certificates: the file.
        unfinished: give -1 for rows that no method has finished.

    Raises:
        InputError: no method has an answer for some row.
    """
    methods = list(certificates.methods.values())
    done = [rows["status"] != Status.PENDING for rows in methods]
    indices: np.ndarray = np.select(done, [rows["index"] for rows in methods], -1)
    missing = int((indices < 0).sum())
    if missing and not unfinished:
        raise InputError(
            f"{certificates.path} is not finished: no method has an answer for {missing} of {len(indices)} samples; "
            "run the same command again to finish it"
        )
    return indices


def disagreements(certificates: Certificates) -> Iterator[str]:
    """Yield the places where parts of a file disagree, or say something else than the method does; a line each."""
    attributes = certificates.attributes
    for name, value in identity_of(certificates).items():
        if _plain(attributes.get(name)) != value:
            yield f"the attribute {name} is {_short(attributes.get(name))}, the file's identity says {_short(value)}"
    for rows in certificates:
        for line in _of_method(certificates, rows):
            yield f"{rows.name}: {line}"
    named = [name for name, value in attributes.items() if name.startswith("joint_teacher_") and value]
    if named and not any(find(rows.name).about in (About.PAIR, About.SMOOTHED) for rows in certificates):
        yield f"it has {named[0]}, and no rows about a teacher"
    index = indices_of(certificates, unfinished=True)
    if (index >= 0).all() and attributes.get("indices_sha256") != indices_sha256(index):
        yield "the samples of its rows are not those of indices_sha256: others, or in another order"
    if attributes.get("samples") not in (None, len(index)):
        yield f"it holds {counted(len(index), 'row')} and says {counted(int(attributes['samples']), 'sample')}"


def identity_of(certificates: Certificates) -> Mapping[str, Any]:
    """Return everything that the rows depend on, as the file states it; empty if it does not."""
    try:
        found = json.loads(str(certificates.attributes.get("identity", "{}")))
    except ValueError:
        return {"identity": "unreadable"}
    return found if isinstance(found, dict) else {"identity": "unreadable"}


def _of_method(certificates: Certificates, rows: MethodRows) -> Iterator[str]:
    method, own, root = find(rows.name), rows.attributes, certificates.attributes
    for name, true in (("guarantee", method.guarantee.value), ("claim", method.claim), ("paper", method.paper)):
        if own.get(name, true) != true:
            yield f"the file says its {name} is {_short(own[name])}, the method says {_short(true)}"
    for name in ("norm", "eps_text", "seed", "arithmetic"):
        if name in own and own[name] != root.get(name, own[name]):
            yield f"its {name} is {_short(own[name])}, the file's {_short(root[name])}"
    try:
        value = Epsilon.parse(rows.eps_text).value
    except InputError:
        value = float("nan")
    if value != rows.eps:
        yield f"its eps is {rows.eps:.17g}, written {rows.eps_text}"
    for name, setting in settings_of(certificates, rows.name).items():
        if name in rows.stored and _plain(rows.stored[name]) != setting:
            yield f"its setting {name} is {_short(rows.stored[name])}, the file's settings say {_short(setting)}"


def mixed_rows(certificates: Certificates) -> Iterator[str]:
    """Yield where methods have another sample or label in a row that both have finished; a line each."""
    for rows in certificates:
        for name in ("index", "label"):
            yield from (f"{rows.name}: {line}" for line in _mixed(certificates, rows, name))


def _mixed(certificates: Certificates, rows: MethodRows, name: str) -> Iterator[str]:
    first = next(iter(certificates))
    ours, theirs = rows[name], first[name]
    both = (rows["status"] != Status.PENDING) & (first["status"] != Status.PENDING)
    differ = np.flatnonzero(both & (ours != theirs))
    if len(differ):
        yield f"its {name} in row {differ[0]} is {ours[differ[0]]}, that of {first.name} is {theirs[differ[0]]}"


def settings_of(certificates: Certificates, kind: str) -> dict[str, Any]:
    """Return the settings that a method ran with, as the file states them."""
    try:
        return dict(json.loads(str(certificates.attributes.get("settings", "{}"))).get(kind, {}))
    except (ValueError, AttributeError, TypeError):
        return {}


def method_of(certificates: Certificates, kind: str) -> Method:
    """Return a method with the settings of the file.

    Raises:
        InputError: the file has no settings that the method accepts.
    """
    settings = settings_of(certificates, kind)
    known = {name: value for name, value in settings.items() if value != "unknown"}  # of an imported log
    try:
        return parse(kind, known)
    except InputError as error:
        raise InputError(f"{certificates.path}: {error}") from None


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; other than plain values are stored as JSON."""
    if isinstance(value, str) and value[:1] in "{[":
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:50]}…"
