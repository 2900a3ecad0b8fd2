"""Tell in one line what is wrong with a configuration: the key as the file has it, and the value."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from verifiers.core.errors import did_you_mean


def first_problem(error: ValidationError, kind: type[BaseModel], tree: Mapping[str, Any]) -> str:
    """Describe the first of a configuration's problems, and count the others.

    Args:
        kind: the settings that were wanted; gives the known keys.
        tree: what was given.
    """
    problem = error.errors()[0]
    where = ".".join(_written(problem["loc"], tree))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        known = _known_keys(kind, problem["loc"][:-1])
        return f"unknown key {where!r}.{did_you_mean(key, known)}{more}"
    if problem["type"] == "union_tag_not_found":
        return f"the key {where + '.kind'!r} is missing{more}"
    if problem["type"] == "union_tag_invalid":
        tag, tags = str(problem["ctx"]["tag"]), str(problem["ctx"]["expected_tags"]).replace("'", "").split(", ")
        return f"{where}: unknown kind {tag!r}.{did_you_mean(tag, tags)}{more}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: must be a section of keys and values, got {problem['input']!r}{more}"
    if problem["type"] == "missing":
        return f"the key {where!r} is missing{more}"
    message = problem["msg"].removeprefix("Value error, ")
    told = isinstance(problem["input"], Mapping) or repr(problem["input"]) in message
    given = "" if told else f", got {problem['input']!r}"
    return f"{where}: {message}{given}{more}" if where else f"{message}{given}{more}"


def _written(location: Sequence[Any], tree: Any) -> list[str]:
    """The keys of an error's place as they stand in the file: without the tags that pydantic adds at a union."""
    keys = []
    for number, part in enumerate(location):
        inside = isinstance(tree, Mapping) and part in tree
        listed = isinstance(tree, list | tuple) and isinstance(part, int)
        tag = isinstance(tree, Mapping) and tree.get("kind") == part and not inside
        if inside or listed or (number == len(location) - 1 and not tag):
            keys.append(str(part))
            tree = tree[part] if inside or (listed and part < len(tree)) else None
    return keys


def _known_keys(kind: type[BaseModel], location: Sequence[Any]) -> list[str]:
    """Field names at a place in the tree; at a union, those of the tagged member."""
    models: list[type[BaseModel]] = [kind]
    for number, part in enumerate(location):
        found: list[type[BaseModel]] = []
        for model in models:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            found += [m for m in _models_in(annotation) if m is not None]
        tagged = [m for m in models if str(part) == _tag(m)] if number == len(location) - 1 else []
        models = tagged or found or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return str(kind.default) if kind is not None else None
