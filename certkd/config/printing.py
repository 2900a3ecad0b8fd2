"""Write settings as YAML that can be read again, every setting with its meaning and its choices."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from verifiers.core.settings import Strict

_ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")
#: Comments are broken before this column.
WIDTH = 100


def commented(settings: Strict) -> str:
    """Write settings as a YAML document: all of them, each with a comment where there is something to say."""
    return "\n".join(_section(settings, "")) + "\n"


def meanings(kind: type[BaseModel]) -> dict[str, str]:
    """Read the meaning of each setting from the docstrings of a class and of those that it extends."""
    found: dict[str, str] = {}
    for ancestor in reversed(kind.__mro__):
        text = inspect.cleandoc(ancestor.__doc__ or "") if issubclass(ancestor, BaseModel) else ""
        _, _, listed = text.partition("\nAttributes:\n")
        names: list[str] = []
        for line in listed.splitlines():
            if line and not line.startswith(" "):
                break
            entry = _ENTRY.fullmatch(line.strip())
            if entry and re.match(r" {4}\S", line):
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.rstrip(".") for name, text in found.items() if name in kind.model_fields}


def choices(annotation: Any) -> list[str]:
    """List the words that a setting may be, where it is one of a few."""
    parts = list(_parts(annotation))
    words = [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]
    words += [str(word.value) for part in parts if isinstance(part, type) and issubclass(part, Enum) for word in part]
    return words if len(words) > 1 else []


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)


def _section(settings: BaseModel, indent: str) -> Iterator[str]:
    """Yield the lines of a section; of a kind, that comes first."""
    known = meanings(type(settings))
    about = next((text for name in ("summary", "claim") if isinstance(text := getattr(settings, name, None), str)), "")
    fields = sorted(type(settings).model_fields.items(), key=lambda field: field[0] != "kind")
    for name, field in fields:
        words = [] if name == "kind" else choices(field.annotation)
        comment = ". ".join([*([known[name]] if name in known else []), *([", ".join(words)] if words else [])])
        yield from _entry(name, getattr(settings, name), about if name == "kind" and about else comment, indent)


def _entry(name: str, value: Any, comment: str, indent: str) -> Iterator[str]:
    """Yield the lines of one setting."""
    scalar = f"{indent}{name}: {_plain(value)}"
    if not isinstance(value, BaseModel) and not _nested(value) and comment and len(scalar) + len(comment) + 4 < WIDTH:
        yield f"{scalar}  # {comment}"
        return
    yield from _wrapped(comment, indent)
    if isinstance(value, BaseModel):
        yield f"{indent}{name}:"
        yield from _section(value, f"{indent}  ")
    elif isinstance(value, Mapping) and _nested(value):
        yield f"{indent}{name}:"
        for key, inner in value.items():
            yield from _entry(json.dumps(key), inner, "", f"{indent}  ")
    elif _nested(value):
        yield f"{indent}{name}:"
        for inner in value:
            first, *rest = _section(inner, f"{indent}    ")
            yield f"{indent}  - {first.strip()}"
            yield from rest
    else:
        yield scalar


def _wrapped(comment: str, indent: str) -> Iterator[str]:
    width = WIDTH - len(indent) - 2
    for line in textwrap.wrap(comment, width, break_long_words=False, break_on_hyphens=False):
        yield f"{indent}# {line}"


def _nested(value: Any) -> bool:
    """Tell whether a list or a mapping holds settings."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return any(isinstance(one, BaseModel) for one in inner)


def _plain(value: Any) -> str:
    return "" if isinstance(value, BaseModel) or _nested(value) else json.dumps(value, ensure_ascii=False)
