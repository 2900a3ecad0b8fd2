"""Describe the training objectives from their source, without importing them: importing them would import torch.

A test compares every description with the class itself.
"""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from verifiers.core.errors import InputError, did_you_mean

_ROOT = Path(__file__).parents[1]
_PACKAGE, _BASE = "certkd.objectives", "Objective"


@dataclass(frozen=True)
class Setting:
    """One setting of an objective: its default (None if it must be given), and the allowed words."""

    name: str
    default: str | None
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """One objective: its docstring and those of the classes that it extends, and its settings."""

    kind: str
    summary: str
    paper: str
    texts: tuple[str, ...]
    settings: tuple[Setting, ...]


@cache
def descriptions() -> dict[str, Description]:
    """Return every objective's description by its kind, in the order of ``certkd.objectives.OBJECTIVES``."""
    found = [_described(name) for name in class_names()]
    return {description.kind: description for description in found}


@cache
def class_names() -> tuple[str, ...]:
    """Return the names of the objectives' classes, in the order of ``certkd.objectives.OBJECTIVES``."""
    listed = _definition(_PACKAGE, "OBJECTIVES")[1]
    assert isinstance(listed, ast.Tuple)
    return tuple(element.id for element in listed.elts if isinstance(element, ast.Name))


def describe(kind: str) -> Description:
    """Return the description of one objective.

    Raises:
        InputError: there is no objective of that name.
    """
    known = descriptions()
    if kind not in known:
        raise InputError(f"unknown objective {kind!r}.{did_you_mean(kind, list(known))}")
    return known[kind]


def _described(name: str) -> Description:
    lineage = list(_lineage(_PACKAGE, name))
    fields: dict[str, tuple[str, ast.AnnAssign]] = {}
    for module, definition in reversed(lineage):
        for line in definition.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                fields[line.target.id] = (module, line)
    constants = {field: str(_value(fields[field][1].value)) for field in ("kind", "summary", "paper")}
    texts = tuple(inspect.cleandoc(text) for _, node in lineage if (text := ast.get_docstring(node, clean=False)))
    settings = tuple(
        Setting(field, _default(line), tuple(_choices(module, line.annotation)))
        for field, (module, line) in fields.items()
        if field != "kind" and "ClassVar" not in ast.unparse(line.annotation)
    )
    return Description(**constants, texts=texts, settings=settings)


def _default(line: ast.AnnAssign) -> str | None:
    return None if line.value is None else str(_value(line.value))


def _lineage(module: str, name: str) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield a class and its bases, except the base of all objectives, each with its module."""
    while name != _BASE:
        module, definition = _definition(module, name)
        assert isinstance(definition, ast.ClassDef)
        yield module, definition
        name = ast.unparse(definition.bases[0])


@cache
def _names(module: str) -> dict[str, ast.AST]:
    """Map the names that a module defines and imports to their nodes."""
    path = _ROOT.joinpath(*module.split("."))
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
    names: dict[str, ast.AST] = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.ClassDef):
            names[line.name] = line
        elif isinstance(line, ast.ImportFrom):
            names |= {alias.asname or alias.name: line for alias in line.names}
        elif isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            names |= {target.id: line.value for target in targets if isinstance(target, ast.Name)}
    return names


def _definition(module: str, name: str) -> tuple[str, ast.AST | None]:
    """Find the module that defines a name, and the definition; imports are followed inside the two packages."""
    found = _names(module).get(name)
    if not isinstance(found, ast.ImportFrom):
        return module, found
    if (found.module or "").split(".")[0] not in ("certkd", "verifiers"):
        return module, None
    original = next(alias.name for alias in found.names if (alias.asname or alias.name) == name)
    return _definition(str(found.module), original)


def _choices(module: str, annotation: ast.AST) -> Iterator[str]:
    """Yield the words that a setting may be; none for numbers and for a single word."""
    if isinstance(annotation, ast.BinOp):  # X | None
        yield from _choices(module, annotation.left)
    elif isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        words = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
        yield from (str(_value(word)) for word in words)
    elif isinstance(annotation, ast.Name):
        where, definition = _definition(module, annotation.id)
        if isinstance(definition, ast.ClassDef):  # an enumeration
            members = [line.value for line in definition.body if isinstance(line, ast.Assign)]
            yield from (str(_value(member)) for member in members)
        elif isinstance(definition, ast.Subscript):
            yield from _choices(where, definition)


def _value(node: ast.AST | None) -> Any:
    """Evaluate a constant, a quotient of two, or a member of an enumeration."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _value(node.left) / _value(node.right)
    if isinstance(node, ast.Attribute):
        return node.attr.lower()
    raise ValueError(f"a setting's default is no constant: {ast.unparse(node) if node else node}")
