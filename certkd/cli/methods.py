"""``certkd methods`` and ``certkd objectives``."""

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from verifiers.core.errors import InputError

if TYPE_CHECKING:
    from certkd.objectives import Objective
    from verifiers.methods.base import Method


@click.command()
@click.argument("kind", required=False)
def methods(kind: str | None) -> None:
    """List the certificate methods, or describe one: claim, settings, columns, paper.

    KIND is a method's name, like crown.
    """
    from certkd.report.console import display
    from verifiers.core.table import Table
    from verifiers.methods.registry import METHODS, find

    if kind is not None:
        display(*_described(find(kind)))
        return
    rows = [[str(m.model_fields["kind"].default), m.guarantee.value, m.about.value, " ".join(m.norms)] for m in METHODS]
    display(Table("Certificate methods", ["method", "guarantee", "about", "norms"], rows))
    display(*(f"{method.model_fields['kind'].default}: {method.claim}" for method in METHODS))
    display("'certkd methods KIND' describes one: its settings, columns and paper.")


def _described(method: "type[Method]") -> Iterator[str]:
    """A method's description, then its settings and columns."""
    yield f"{method.model_fields['kind'].default} ({method.guarantee.value}; about {_ABOUT[method.about]})"
    yield f"  claim: {method.claim}"
    yield f"  norms: {', '.join(method.norms)}"
    yield f"  cost: {method.cost}"
    yield f"  source: {method.paper}"
    yield ""
    for ancestor in method.__mro__:
        if ancestor.__doc__ and ancestor.__module__ == method.__module__:
            yield f"{inspect.cleandoc(ancestor.__doc__)}\n"
    yield "settings, as --option NAME=VALUE:"
    for name, field in method.model_fields.items():
        if name != "kind":
            default = "(needed)" if field.is_required() else str(field.default)
            yield f"  {name}: {default}{_choices(field.annotation)}"
    if method.columns:
        yield "columns, besides the common ones:"
    for column in method.columns:
        yield f"  {column.name}: {column.description}"


_ABOUT = {
    "network": "the network as it is deployed",
    "pair": "the network and its teacher",
    "smoothed": "the network under noise",
}


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
