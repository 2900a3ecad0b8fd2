"""Read settings from YAML 1.2: files that extend each other, and ``key.sub=value`` overrides."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from certkd.config.yaml import parse, read_configuration
from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.settings import Strict

Config = TypeVar("Config", bound=Strict)


def read(
    path: str | os.PathLike[str] | None,
    kind: type[Config],
    overrides: Sequence[str] = (),
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Config:
    """Read a YAML file into settings, with ``key.sub=value`` overrides applied.

    A file may build on another one with ``extends: other.yaml``, relative to itself, in the folder of the first file or
    below. Sections are merged key by key and the later file wins; a section of another ``kind`` or ``name`` replaces
    the earlier one.

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
    return parse(text)


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
        raise InputError(f"{path}: extends must name one file, got {quoted(base)}")
    _check_inside((*extended_by, path)[0].parent, path, base)
    return _merged(_load_file(path.parent / base, (*extended_by, path)), tree)


def _check_inside(folder: Path, path: Path, base: str) -> None:
    """Refuse an extended file outside the folder of the configuration that was given, also by a link."""
    with loading(path, "a configuration"):
        inside = (path.parent / base).resolve().is_relative_to(folder.resolve())
        if Path(base).is_absolute() or not inside:
            raise InputError(f"{path}: extends {quoted(base)} is outside the folder {folder}: copy the file into it")


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
    text = read_configuration(path)
    try:
        tree = parse(text)
    except InputError as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    if not isinstance(tree, dict):
        held = "is empty" if tree is None else f"holds {type(tree).__name__}"
        raise InputError(f"{path} must hold key: value lines, it {held}")
    return tree


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
