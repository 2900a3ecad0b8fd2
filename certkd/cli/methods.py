"""``certkd methods`` and ``certkd objectives``: what there is."""

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from verifiers.core.errors import InputError

if TYPE_CHECKING:
    from certkd.objectives import Objective


@click.command()
def methods() -> None:
    """List the certificate methods, and what each one's answer is worth."""
    from certkd.report.console import stdout, table
    from verifiers.methods.registry import METHODS

    settings = [", ".join(f"{name}={_written(value)}" for name, value in m.options.items()) for m in METHODS]
    rows = [
        [m.name, m.guarantee.value, " ".join(m.norms), m.claim, text] for m, text in zip(METHODS, settings, strict=True)
    ]
    console = stdout()
    console.print(table("Certificate methods", ["method", "guarantee", "norms", "a row says", "options"], rows))
    for method in METHODS:
        console.print(f"{method.name}: {method.paper}", soft_wrap=True)


def _written(value: object) -> str:
    return "(needed)" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


@click.command()
@click.argument("kind", required=False)
def objectives(kind: str | None) -> None:
    """List the training objectives, or tell one's formula, settings and their choices.

    KIND is an objective's name, like kdiga.
    """
    from certkd.objectives import OBJECTIVES
    from certkd.report.console import stdout
    from verifiers.core.errors import did_you_mean

    console, known = stdout(), {str(o.model_fields["kind"].default): o for o in OBJECTIVES}
    if kind is None:
        for name, objective in known.items():
            console.print(f"{name}: {objective.summary}", soft_wrap=True)
            if objective.paper:
                console.print(f"    {objective.paper}", soft_wrap=True)
        console.print("certkd objectives KIND tells one's formula and settings.")
        return
    if kind not in known:
        raise InputError(f"unknown objective {kind!r}.{did_you_mean(kind, list(known))}")
    for line in _whole(known[kind]):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _whole(objective: "type[Objective]") -> Iterator[str]:
    """An objective's description and those of what it goes on from, then its settings."""
    from certkd.objectives import Objective

    for ancestor in objective.__mro__:
        if issubclass(ancestor, Objective) and ancestor is not Objective and ancestor.__doc__:
            yield f"{inspect.cleandoc(ancestor.__doc__)}\n"
    yield f"Source: {objective.paper}\n" if objective.paper else ""
    for name, field in objective.model_fields.items():
        if name != "kind":
            default = "(needed)" if field.is_required() else str(field.default)
            yield f"  {name}: {default}{_choices(field.annotation)}"


def _choices(annotation: Any) -> str:
    """What a setting may be, where that is one of a few words."""
    parts = [annotation, *get_args(annotation)]
    words = [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, Enum)]
    words += [str(word) for enum in enums for word in enum]
    return f"   of {', '.join(words)}" if len(words) > 1 else ""
