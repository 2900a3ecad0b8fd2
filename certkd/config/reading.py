"""Read settings from YAML 1.2: files that extend each other, and ``key.sub=value`` overrides."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from verifiers.core.errors import InputError, one_line
from verifiers.core.settings import Strict

Config = TypeVar("Config", bound=Strict)
#: Sections within sections that a configuration may have.
DEEPEST = 50


def read(
    path: str | os.PathLike[str] | None,
    kind: type[Config],
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Read a YAML file into settings, with ``key.sub=value`` overrides applied.

    A file may build on another one with ``extends: other.yaml``, relative to itself. Sections are merged key by key and
    the later file wins; a section of another ``kind`` or ``name`` replaces the earlier one.

    Args:
        path: of the file; None for ``defaults`` alone.
        kind: the settings to build.
        defaults: the settings when there is no file.

    Raises:
        InputError: a missing file, a file that extends itself, broken YAML, a key given twice, an unknown key (with the
            nearest known one), a value of the wrong type; the message names the key and repeats the value.
    """
    tree = dict(defaults or {}) if path is None else _load_file(Path(path))
    return kind.parse(_override(tree, overrides), source="settings" if path is None else str(path))


def value_of(text: str) -> Any:
    """Read one value written in YAML: ``3``, ``[64, 64]``, ``resnet``; None for a blank text.

    Raises:
        InputError: the text is not YAML.
    """
    return _plain(text)


def _load_file(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's settings on top of those of the file that it extends."""
    if any(path.resolve() == other.resolve() for other in extended_by):
        raise InputError(f"{extended_by[-1]} extends {path}, which extends it: remove one of the two extends")
    try:
        tree = _load_yaml(path)
    except InputError as error:
        raise InputError(f"{error} ({extended_by[-1]} extends it)" if extended_by else str(error)) from None
    if "extends" not in tree:
        return tree
    base = tree.pop("extends")
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: extends must name one file, got {base!r}")
    return _merged(_load_file(path.parent / base, (*extended_by, path)), tree)


def _merged(base: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees, key by key; a section of another kind or name replaces the earlier one, whose keys were about that."""
    if any(key in base and key in later and base[key] != later[key] for key in ("kind", "name")):
        return dict(later)
    result = dict(base)
    for key, value in later.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such configuration: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    try:
        tree = _plain(text)
    except InputError as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        held = "is empty" if tree is None else f"holds {type(tree).__name__}"
        raise InputError(f"{path} must hold key: value lines, it {held}")
    return tree


def _plain(text: str) -> Any:
    """The values of a YAML document: nothing that refers to itself, and no key that is a list or a section."""
    try:
        tree = YAML(typ="safe", pure=True).load(text)
        _check_nesting(tree, (), set())
    except MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise InputError(f"{where}{one_line(ValueError(error.problem or error.context))}") from None
    except (YAMLError, ValueError, TypeError) as error:
        raise InputError(one_line(error)) from None
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    return tree


def _check_nesting(node: Any, above: tuple[int, ...], done: set[int]) -> None:
    """Refuse a node that is inside itself, and keys that are not words or numbers; each node is visited once."""
    if not isinstance(node, dict | list) or id(node) in done:
        return
    if len(above) > DEEPEST:
        raise ValueError("it is nested too deeply")
    if id(node) in above:
        raise ValueError("an alias refers to the section that it is in")
    if isinstance(node, dict) and (bad := next((key for key in node if isinstance(key, tuple)), None)) is not None:
        raise ValueError(f"the key {list(bad)} must be a word, not a list or a section")
    for child in node.values() if isinstance(node, dict) else node:
        _check_nesting(child, (*above, id(node)), done)
    done.add(id(node))


def _override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise InputError(f"--set {override!r} must look like key=value, for example --set objective.lambda_iga=0.3")
        *parents, last = key.strip().split(".")
        node = tree
        for name in parents:
            child = node.setdefault(name, {})
            if not isinstance(child, dict):
                raise InputError(f"--set {override!r}: {name!r} is a value, not a section")
            node = child
        try:
            node[last] = value_of(text)
        except InputError as error:
            raise InputError(f"--set {override!r}: the value is not YAML: {error}") from None
    return tree
