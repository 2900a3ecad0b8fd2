"""Say in one line what is wrong with settings: the setting as it was given, its value, and what is allowed."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from verifiers.core.errors import did_you_mean, quoted

#: The rule that a value broke, by pydantic's name of the problem; a name in braces is the limit or the choices.
_RULES = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_type": "must be text",
    "string_pattern_mismatch": "must match {pattern}",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "must be a finite number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be settings by name"),
}


def first_problem(error: ValidationError, kind: type[BaseModel], given: Mapping[str, Any]) -> str:
    """Describe the first problem of some settings, an unknown name before all others, and count the others.

    Args:
        kind: the wanted settings.
        given: the values from which they could not be built.
    """
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    return f"{_described(found[0], kind, given)}{more}"


def _described(problem: Any, kind: type[BaseModel], given: Mapping[str, Any]) -> str:
    place, sort, value = problem["loc"], problem["type"], problem["input"]
    keys = _written(place, given)
    where, last = ".".join(keys), keys[-1] if keys else ""
    if sort == "extra_forbidden":
        models = _models_at(kind, place[:-1])
        inside = _inside(models, last)
        hint = f" Did you mean {inside!r}?" if inside else did_you_mean(last, _fields(models))
        return f"unknown setting {where!r}.{hint}"
    if sort == "missing":
        return f"the setting {where} is missing{_example(_models_at(kind, place[:-1]), last)}"
    if sort == "union_tag_not_found":
        return f"the setting {where}.kind is missing"
    if sort == "union_tag_invalid":
        tags = [tag for model in _models_at(kind, place) if (tag := _tag(model))]
        return f"{where}: unknown kind {quoted(value['kind'])}.{did_you_mean(str(value['kind']), tags)}"
    if sort == "value_error":
        return _own(str(problem["ctx"]["error"]), value, where, last)
    limits = {name: _plain(limit) for name, limit in problem.get("ctx", {}).items()}
    known = _RULES.get(sort)
    rule = known.format(**limits) if known else problem["msg"].replace("Input should be", "must be")
    hint = _kind_hint(_models_at(kind, place), value) if "settings by name" in rule else ""
    return f"{where} {rule}{hint}, got {quoted(value)}".lstrip()


def _inside(models: Sequence[type[BaseModel]], name: str) -> str | None:
    """Return the first of the settings one level further down that has a name, like ``optimizer.lr``."""
    for model in models:
        for field, info in model.model_fields.items():
            if any(name in inner.model_fields for inner in _models_in(info.annotation)):
                return f"{field}.{name}"
    return None


def _own(message: str, value: Any, where: str, last: str) -> str:
    """Complete the message of one of our own validators: name the setting and repeat the value."""
    if not isinstance(value, Mapping) and quoted(value) not in message:
        message = f"{message}, got {quoted(value)}"
    if where and message.startswith(f"{last} "):
        return f"{where} {message.removeprefix(f'{last} ')}"
    return f"{where}: {message}" if where and not message.startswith(f"{where}: ") else message


def _example(models: Sequence[type[BaseModel]], name: str) -> str:
    examples = [example for model in models for example in model.model_fields[name].examples or []]
    return f": give one, like {name}={examples[0]}" if examples else ""


def _kind_hint(models: Sequence[type[BaseModel]], value: Any) -> str:
    """Write an example of settings with a kind: the kind that the value names, or the first one."""
    tags = [tag for model in models if (tag := _tag(model))]
    return f", like {{kind: {value if value in tags else tags[0]}}}" if tags else ""


def _plain(limit: Any) -> Any:
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _written(location: Sequence[Any], tree: Any) -> list[str]:
    """List the keys of a problem's place as they were given, without the tags that pydantic adds at a union."""
    keys = []
    for number, part in enumerate(location):
        inside = isinstance(tree, Mapping) and part in tree
        listed = isinstance(tree, list | tuple) and isinstance(part, int)
        tag = isinstance(tree, Mapping) and tree.get("kind") == part and not inside
        if inside or listed or (number == len(location) - 1 and not tag and part != "[key]"):
            keys.append(str(part))
            tree = tree[part] if inside or (listed and part < len(tree)) else None
    return keys


def _models_at(kind: type[BaseModel], location: Sequence[Any]) -> list[type[BaseModel]]:
    """List the settings that a place may hold; at a union, the tagged member."""
    models: list[type[BaseModel]] = [kind]
    for number, part in enumerate(location):
        found: list[type[BaseModel]] = []
        for model in models:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            found += _models_in(annotation)
        tagged = [model for model in models if str(part) == _tag(model)] if number == len(location) - 1 else []
        models = tagged or found or models
    return models


def _fields(models: Sequence[type[BaseModel]]) -> list[str]:
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in _models_in(argument)]


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return str(kind.default) if kind is not None else None
