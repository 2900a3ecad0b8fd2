"""``certkd methods``."""

import inspect
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

from certkd.cli.output import Command

if TYPE_CHECKING:
    from verifiers.methods.base import Method


@click.command(cls=Command)
@click.argument("kind", required=False)
def methods(kind: str | None) -> None:
    """List the certificate methods, or describe one.

    KIND is a method's name, like crown; its claim, settings, columns and paper are printed.
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
    """Yield a method's description, its settings and its columns."""
    yield f"{method.model_fields['kind'].default} ({method.guarantee.value}; about {_ABOUT[method.about]})"
    yield f"  claim: {method.claim}"
    yield f"  norms: {', '.join(method.norms)}"
    yield f"  cost: {method.cost}"
    yield f"  source: {method.paper}"
    yield ""
    for ancestor in method.__mro__:
        if ancestor.__doc__ and ancestor.__module__ == method.__module__:
            yield f"{inspect.cleandoc(ancestor.__doc__)}\n"
    if len(method.model_fields) > 1:
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


def _choices(annotation: Any) -> str:
    """List the allowed words of a setting that takes one of a few."""
    parts = [annotation, *get_args(annotation)]
    words = [str(word) for part in parts if get_origin(part) is Literal for word in get_args(part)]
    enums = [part for part in parts if isinstance(part, type) and issubclass(part, Enum)]
    words += [str(word) for enum in enums for word in enum]
    return f"   of {', '.join(words)}" if len(words) > 1 else ""
